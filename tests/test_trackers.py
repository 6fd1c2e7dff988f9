"""A round's numbers and its top and bottom records reach the trackers that are active, each the real package,
offline."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

from rollsight import cli, runs
from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.adapters.top_records import top_records
from rollsight.errors import OptionError
from rollsight.trackers import RECORDS, Table, Trackers, scalars
from rollsight.training.run import RunSettings, run_training

SUMMARY = {"round": 2, "kept_frac": 0.75, "score_min": -1.5, "return_mean": None, "backend": "jvp", "scored": True}
SHORT: dict[str, Any] = {"rounds": 2, "n_steps": 64, "batch_size": 16, "epochs": 1, "eval_episodes": 0}


def learn(**keywords: Any) -> InfluenceCallback:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=1, device="cpu", seed=0)
    callback = InfluenceCallback(**keywords)
    model.learn(128, callback=callback)
    return callback


def reader_of(folder: Path) -> Any:
    """TensorBoard's own, of its event files."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(folder), {"tensors": 0, "images": 0})
    reader.Reload()
    return reader


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """name -> (step, value) of TensorBoard's event files."""
    reader = reader_of(folder)
    return {name: [(e.step, e.value) for e in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def texts(folder: Path) -> list[tuple[int, str]]:
    """(step, Markdown) of the tables of records in TensorBoard's event files."""
    found = reader_of(folder).Tensors(f"{RECORDS}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found]


def extremes(callback: InfluenceCallback) -> list[int]:
    """The records of the last round with the highest five scores, and the lowest five."""
    order = np.argsort(-callback.scores["return"].values.numpy(), kind="stable")
    return [*order[:5].tolist(), *order[: -5 - 1 : -1].tolist()]


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
    first, last = texts(tmp_path / "board")
    assert (first[0], last[0]) == (64, 128)
    heading, _, *rows = [line[2:-2].split(" | ") for line in last[1].splitlines()]
    table = [dict(zip(heading, row, strict=True)) for row in rows]
    assert [int(row["rank"]) for row in table] == [1, 2, 3, 4, 5, -1, -2, -3, -4, -5]
    run = runs.open(tmp_path / "run")
    scores = run.records(2)["score_return"].to_numpy()
    assert [int(row["record"]) for row in table] == [*np.argsort(-scores)[:5], *np.argsort(scores)[:5]]
    assert [row["kept"] for row in table] == ["True"] * 5 + ["False"] * 5
    assert [row["reason"] for row in table] == [""] * 5 + ["negative score"] * 5
    pictures = reader_of(tmp_path / "board").Images(RECORDS)
    assert [(one.step, one.height, one.width) for one in pictures] == [(64, 100, 1500), (128, 100, 1500)]


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
    run = mlflow_run.info.run_id
    table = mlflow.load_table(f"{RECORDS}/from-round-000001.json", run_ids=[run])
    assert table["round"].tolist() == [1] * 10 + [2] * 10
    last = table[10:]
    stored = runs.open(tmp_path / "run").records(2).take(last["record"].tolist())
    assert last["score_return"].tolist() == pytest.approx(stored["score_return"].to_pylist())
    assert last["action"].tolist() == stored["action"].to_pylist()
    pictures = [one.path for one in mlflow.MlflowClient().list_artifacts(run, "images")]
    assert sum(one.endswith(".png") for one in pictures) == 2


def test_mlflows_table_is_appended_to_in_files_of_a_hundred_rounds(mlflow_run: Any) -> None:
    import mlflow

    trackers = Trackers()
    for round in (1, 100, 101):
        trackers.keep(Table({"round": [round], "rank": [1], "completion": ['<b>a|b</b>\n"c"']}))
        trackers.log_table(round, round)
    tables = [mlflow.load_table(f"{RECORDS}/from-round-{first:06d}.json") for first in (1, 101)]
    assert [table["round"].tolist() for table in tables] == [[1, 100], [101]]
    assert set(tables[0]["completion"]) == {'<b>a|b</b>\n"c"'}


def test_trackio_gets_the_rounds_of_the_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # before the first import
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import MEDIA_DIR  # where the first import in this process put it

    trackio.init(project="rollsight", name="one", embed=False, auto_log_cpu=False, auto_log_gpu=False)
    callback = learn()
    trackio.finish()
    kept = SQLiteStorage.get_logs("rollsight", "one")
    assert [(row["influence/step"], row["influence/kept_frac"]) for row in kept] == [(64, 1.0), (128, 1.0)]
    table = kept[1][RECORDS]["_value"]
    assert [row["record"] for row in table] == extremes(callback)
    assert all((MEDIA_DIR / row["picture"]["file_path"]).is_file() for row in table)
    learn()  # no run is active
    assert len(SQLiteStorage.get_logs("rollsight", "one")) == 2


def test_wandb_gets_the_rounds_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    with wandb.init(mode="offline", dir=str(tmp_path), project="rollsight") as run:
        callback = learn()
        assert run.summary["influence/round"] == 2.0
        assert run.summary["influence/kept_frac"] == 1.0
        assert run.step == 2
    assert list(tmp_path.rglob("*.wandb"))
    staged = [file.read_bytes() for file in (tmp_path / "data").rglob("*") if file.is_file()]
    tables = [json.loads(content) for content in staged if content.startswith(b'{"_type": "table"')]
    rows = {json.dumps(row): dict(zip(one["columns"], row, strict=True)) for one in tables for row in one["data"]}
    assert sorted(row["round"] for row in rows.values()) == [1] * 10 + [2] * 10
    assert sorted(row["record"] for row in rows.values() if row["round"] == 2) == sorted(extremes(callback))
    pictures = [row["picture"] for row in rows.values()]
    assert {(one["_type"], one["height"], one["width"]) for one in pictures} == {("image-file", 100, 150)}
    assert {one["sha256"] for one in pictures} <= {hashlib.sha256(content).hexdigest() for content in staged}
    assert "image-file" in json.dumps(tables[0]["column_types"]["params"]["type_map"]["picture"])
    learn()  # nothing is active


class Recorded(types.SimpleNamespace):
    """A W&B run as far as it is asked."""

    def define_metric(self, *_: Any, **__: Any) -> None: ...

    def log(self, values: Any) -> None:
        self.rounds += [values["influence/round"]] if "influence/round" in values else []
        self.tables += RECORDS in values


@pytest.mark.parametrize(("synced", "board", "sent"), [(True, True, []), (True, False, [1, 2]), (False, True, [1, 2])])
def test_what_the_hosts_logger_already_sends_is_not_sent_twice(
    synced: bool, board: bool, sent: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Recorded(rounds=[], tables=0, id="1", settings=types.SimpleNamespace(sync_tensorboard=synced))
    table = type("Table", (types.SimpleNamespace,), {"add_data": lambda self, *row: None})
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(run=run, Table=table, Image=len))
    if board:
        pytest.importorskip("tensorboard")
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=1, device="cpu", seed=0)
    model.set_logger(configure(str(tmp_path), ["tensorboard"] if board else ["csv"]))
    model.learn(128, callback=InfluenceCallback())
    assert run.rounds == sent
    assert run.tables == 2
    if board:
        assert [step for step, _ in texts(tmp_path)] == [64, 128]


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


def test_a_table_that_cannot_be_made_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    module = types.SimpleNamespace(active_run=lambda: object(), log_metrics=lambda values, step: taken.append(step))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setattr("rollsight.environments.drawing.Drawing.of", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match=r"round 1: no records for trackers \(ZeroDivisionError"):
        learn()
    assert taken == [64, 128]


def test_training_with_a_tracker_is_training_without(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trained = []
    for board in (None, tmp_path):
        model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=1, device="cpu", seed=0)
        callback = InfluenceCallback(drop=0.5)
        callback.trackers = Trackers(board)
        model.learn(192, callback=callback)
        callback.trackers.close()
        trained.append(torch.nn.utils.parameters_to_vector(model.policy.parameters()))
    assert len(texts(tmp_path)) == 3
    assert torch.equal(*trained)


def language_columns(n: int) -> dict[str, Any]:
    """Completions that a page could take for its own."""
    return {
        "round": np.full(n, 3),
        "prompt": ["a | b\nc"] * n,
        "completion": [f"<script>{i}</script> ![x](http://e/p) [l](javascript:1) *b* `c` \\| \u202e" for i in range(n)],
        "score_sequence": [None, *np.linspace(-1, 1, n - 1)],
        "reward": np.array([np.nan] * n),
        "kept": np.ones(n, bool),
        "reason": pa.nulls(n, pa.string()),
        "valid": np.array([False, *[True] * (n - 1)]),
    }


def test_the_table_holds_the_records_of_both_ends_as_plain_values() -> None:
    table = top_records(language_columns(4), {})
    assert table is not None
    assert table.columns["record"] == [3, 2, 1]
    assert table.columns["rank"] == [1, 2, -1]
    assert table.columns["score_sequence"] == [1.0, 0.0, -1.0]
    assert table.columns["reward"] == table.columns["reason"] == [None] * 3
    assert table.pictures == []
    json.dumps(dict(table.columns))
    assert top_records(language_columns(1), {}) is None
    long = {**language_columns(2), "completion": ["x" * 10**6] * 2}
    assert len(top_records(long, {}).columns["completion"][0]) == 1001  # type: ignore[union-attr]


def test_texts_are_texts_in_tensorboards_table(tmp_path: Path) -> None:
    plugin = pytest.importorskip("tensorboard.plugin_util")
    trackers = Trackers(tmp_path)
    trackers.keep(top_records(language_columns(3), {}))
    trackers.log({"round": 3})
    trackers.close()
    ((step, markdown),) = texts(tmp_path)
    shown = plugin.markdown_to_safe_html(markdown)
    assert step == 3
    assert shown.count("<tr>") == 3
    assert shown.count("<td>a | b c</td>") == 2
    assert "&lt;script&gt;1&lt;/script&gt; ![x](http://e/p) [l](javascript:1) *b* `c` \\| \\u202e</td>" in shown
    assert not any(tag in shown for tag in ("<img", "<a ", "<em", "<code", "<script"))


def test_trl_gets_its_texts(mlflow_run: Any, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    pytest.importorskip("tensorboard")
    import mlflow
    from trl_zoo import trainer

    from rollsight.adapters.trl import attach

    trained = trainer(tmp_path / "out", report_to=["tensorboard"])
    attach(trained, drop=0.5, run=tmp_path / "run")
    trained.train()
    table = mlflow.load_table(f"{RECORDS}/from-round-000001.json", run_ids=[mlflow_run.info.run_id])
    assert table["round"].tolist() == [1] * 8 + [2] * 8
    table, stored = table[:8], runs.open(tmp_path / "run").records(1)
    assert table["completion"].tolist() == stored["completion"].take(table["record"].tolist()).to_pylist()
    assert not any(name.startswith("influence/") for name in mlflow.get_run(mlflow_run.info.run_id).data.metrics)
    assert [step for step, _ in texts(next((tmp_path).rglob("events.*")).parent)] == [0, 1]


def test_rlhf_gets_its_texts(mlflow_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    import mlflow
    from language_trainer import PROMPTS, options, vowels

    from rollsight.training.language import rewards, run

    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), "utf-8")
    monkeypatch.setattr(rewards, "load", lambda *_: vowels)
    given = {"options": options(cross_fit=True), "rounds": 3, "lora_rank": 2, "eval_prompts": 0}
    run.train(run.RunSettings("miniature", str(tmp_path / "prompts.txt"), "test", **given), tmp_path / "run")
    table = mlflow.load_table(f"{RECORDS}/from-round-000001.json", run_ids=[mlflow_run.info.run_id])
    table, stored = table[table["round"] == 1], runs.open(tmp_path / "run").records(1)
    assert table["prompt"].tolist() == stored["prompt"].take(table["record"].tolist()).to_pylist()
    assert table["reward"].tolist() == pytest.approx(stored["reward"].take(table["record"].tolist()).to_pylist())
    rows = [row for round in (1, 2, 3) for row in runs.open(tmp_path / "run").records(round).to_pylist()]
    why = {(True, True): None, (False, True): "negative score", (False, False): "invalid"}
    assert [row["reason"] for row in rows] == [why[row["kept"], row["valid"]] for row in rows]
    assert "negative score" in {row["reason"] for row in rows}


def test_no_tracker_is_imported() -> None:
    code = (
        "import sys; from rollsight.trackers import Trackers; Trackers().log({'round': 1, 'a': 2.0}); "
        "print([m for m in ('wandb', 'mlflow', 'trackio', 'tensorboard', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
