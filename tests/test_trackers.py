"""A round's numbers reach the trackers that are active, each the real package, offline."""

from __future__ import annotations

import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

from rollsight import cli
from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.errors import OptionError
from rollsight.trackers import Trackers, scalars
from rollsight.training.run import RunSettings, run_training

SUMMARY = {"round": 2, "kept_frac": 0.75, "score_min": -1.5, "return_mean": None, "backend": "jvp", "scored": True}
SHORT: dict[str, Any] = {"rounds": 2, "n_steps": 64, "batch_size": 16, "epochs": 1, "eval_episodes": 0}


def learn(**keywords: Any) -> InfluenceCallback:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=1, device="cpu", seed=0, **keywords)
    callback = InfluenceCallback()
    model.learn(128, callback=callback)
    return callback


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """name -> (step, value) of TensorBoard's event files."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(folder))
    reader.Reload()
    return {name: [(e.step, e.value) for e in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def test_the_numbers_have_the_loggers_names() -> None:
    assert scalars(SUMMARY) == {"influence/round": 2.0, "influence/kept_frac": 0.75, "influence/min": -1.5}
    assert scalars({"a": float("nan"), "b": float("inf"), "c": 1}) == {"influence/c": 1.0}


@pytest.mark.parametrize("engine", ["sb3", "compiled"])
def test_tensorboard_from_the_command_line(engine: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    words = ["--rounds", "2", "--n-steps", "64", "--batch-size", "16", "--epochs", "1", "--eval-episodes", "1"]
    words += ["--engine", engine, "--drop", "0.5"]
    folders = ["--out", str(tmp_path / "run"), "--tensorboard", str(tmp_path / "board")]
    assert cli.main(["train", "CartPole-v1", *words, *folders]) == 0
    found = events(tmp_path / "board")
    assert [step for step, _ in found["influence/kept_frac"]] == [64, 128]
    assert {"influence/return_mean", "influence/evaluation_return", "influence/trust_split_half"} <= found.keys()


def test_tensorboard_that_is_missing_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(OptionError, match="pip install tensorboard"):
        Trackers(tmp_path)
    folders = ["--out", str(tmp_path / "run"), "--tensorboard", str(tmp_path / "board")]
    assert cli.main(["train", "CartPole-v1", *folders]) == 1
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run").exists()


@pytest.fixture
def mlflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as run:
        yield run


@pytest.mark.parametrize("engine", ["sb3", "compiled"])
def test_mlflow_gets_each_round_once(engine: str, mlflow_run: Any, tmp_path: Path) -> None:
    import mlflow

    run_training(RunSettings("CartPole-v1", engine=engine, **SHORT), tmp_path / "run")
    history = mlflow.MlflowClient().get_metric_history(mlflow_run.info.run_id, "influence/kept_frac")
    assert [(metric.step, metric.value) for metric in history] == [(64, 1.0), (128, 1.0)]


def test_trackio_gets_the_rounds_of_the_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # before the first import
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    trackio.init(project="rollsight", name="one", embed=False, auto_log_cpu=False, auto_log_gpu=False)
    learn()
    trackio.finish()
    kept = SQLiteStorage.get_logs("rollsight", "one")
    assert [(row["influence/step"], row["influence/kept_frac"]) for row in kept] == [(64, 1.0), (128, 1.0)]
    learn()  # no run is active
    assert len(SQLiteStorage.get_logs("rollsight", "one")) == 2


def test_wandb_gets_the_rounds_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=str(tmp_path), project="rollsight") as run:
        learn()
        assert run.summary["influence/round"] == 2.0
        assert run.summary["influence/kept_frac"] == 1.0
        assert run.step == 2
    assert list(tmp_path.rglob("*.wandb"))
    learn()  # nothing is active


class Recorded(types.SimpleNamespace):
    """A W&B run as far as it is asked."""

    def define_metric(self, *_: Any, **__: Any) -> None: ...

    def log(self, values: Any) -> None:
        self.rounds.append(values["influence/round"])


@pytest.mark.parametrize(("synced", "board", "sent"), [(True, True, []), (True, False, [1, 2]), (False, True, [1, 2])])
def test_what_the_hosts_logger_already_sends_is_not_sent_twice(
    synced: bool, board: bool, sent: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Recorded(rounds=[], settings=types.SimpleNamespace(sync_tensorboard=synced))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(run=run))
    if board:
        pytest.importorskip("tensorboard")
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=1, device="cpu", seed=0)
    model.set_logger(configure(str(tmp_path), ["tensorboard"] if board else ["csv"]))
    model.learn(128, callback=InfluenceCallback())
    assert run.rounds == sent


def test_a_tracker_that_fails_is_a_warning_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    broken = types.SimpleNamespace(active_run=lambda: object(), log_metrics=fail)
    monkeypatch.setitem(sys.modules, "mlflow", broken)
    trackers = Trackers()
    with pytest.warns(UserWarning, match=r"mlflow did not take .* round 2 \(ConnectionError: no network\)"):
        trackers.log(SUMMARY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trackers.log(SUMMARY)
    with pytest.warns(UserWarning, match="mlflow did not take"):
        callback = learn()
    assert callback.round == 2


def test_no_tracker_is_imported() -> None:
    code = (
        "import sys; from rollsight.trackers import Trackers; Trackers().log({'round': 1, 'a': 2.0}); "
        "print([m for m in ('wandb', 'mlflow', 'trackio', 'tensorboard', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
