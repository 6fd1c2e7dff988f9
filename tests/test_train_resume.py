"""`rollsight train --resume`: a run that was stopped anywhere ends as the one that was not."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv

from rollsight import RollsightError, cli, runs
from rollsight.training.run import RunSettings, prepared, run_training

SHORT: dict[str, Any] = {"rounds": 5, "n_steps": 64, "batch_size": 16, "epochs": 2, "eval_episodes": 2, "seed": 3}
CASES: dict[str, dict[str, Any]] = {
    "sb3": {"engine": "sb3", "selection": "negative:0.5", "optimizer": "adam"},
    "sb3, several, images": {"engine": "sb3", "env": "MiniGrid-Empty-5x5-v0", "envs": 2, "rounds": 3},
    "sb3, normalised": {"engine": "sb3", "env": "Pendulum-v1", "normalize": True, "envs": 2},
    "a2c, random drop": {
        "algo": "a2c",
        "engine": "sb3",
        "env": "Acrobot-v1",
        "selection": "random:0.5",
        "batch_size": None,
        "epochs": None,
    },
    "compiled, a pool of one": {"engine": "compiled", "selection": "negative:0.5", "optimizer": "adam"},
    "compiled, a pool": {"engine": "compiled", "envs": 4, "env": "Acrobot-v1"},
    "compiled, gymnasium": {"engine": "compiled", "env": "Pendulum-v1", "envs": 2, "optimizer": "adam"},
    "compiled, keywords": {"engine": "compiled", "env": "FrozenLake-v1", "env_kwargs": {"is_slippery": False}},
}


class Unrepeatable(CartPoleEnv):
    """CartPole whose observations hold what nobody can seed."""

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return obs + np.float32(1e-3 * random.SystemRandom().random()), *rest


gym.register("Unrepeatable-v0", Unrepeatable, max_episode_steps=500)


def settings_of(case: Mapping[str, Any]) -> RunSettings:
    given = {"env": "CartPole-v1", **SHORT, **case}
    if given["engine"] == "compiled":
        pytest.importorskip("jax", reason="the compiled engine needs JAX")
    return RunSettings(**given)


def interrupt(settings: RunSettings, out: Path, after: int) -> None:
    """Ctrl-C once that many rounds are done."""

    def stop(rounds: float, summary: Mapping[str, Any] | None) -> None:
        if summary is not None and summary["round"] == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(settings, out, on_progress=stop)
    assert runs.open(out).rounds[-1] == after


def go_on(out: Path, **more: Any) -> str:
    with prepared(replace(RunSettings.of_run(out), **more), out, resume=True) as training:
        training.train(None)
    return training.note


def contents(out: Path) -> dict[str, Any]:
    """All that a run recorded, without its times."""
    run = runs.open(out)
    rounds = run.sql("select * from rounds order by round")
    timed = [i for i, name in enumerate(rounds.columns) if name.startswith(("time_", "overhead", "records_per_second"))]
    return {
        "records": [str(run.records(round).to_pydict()) for round in run.rounds],  # as texts: NaN is not itself
        "rounds": [str([v for i, v in enumerate(row) if i not in timed]) for row in rounds.fetchall()],
        "evaluations": run.sql("select * from evaluations order by all").fetchall(),
    }


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_resumed_run_is_the_uninterrupted_one(case: dict[str, Any], tmp_path: Path) -> None:
    settings = settings_of(case)
    run_training(settings, tmp_path / "whole")
    interrupt(settings, tmp_path / "cut", 2)
    assert "go on" in go_on(tmp_path / "cut")
    whole, cut = contents(tmp_path / "whole"), contents(tmp_path / "cut")
    assert len(whole["records"]) == settings.rounds
    assert cut == whole
    (entry,) = runs.open(tmp_path / "cut").metadata["continued"]
    assert "go on" in entry["episodes"]
    assert len(os.listdir(tmp_path / "cut" / "checkpoints")) == 1


def test_a_run_goes_on_beyond_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_of(CASES["sb3"])
    run_training(replace(settings, rounds=2), tmp_path / "run")
    assert cli.main(["train", "--resume", str(tmp_path / "run")]) == 1
    assert "has its 2 rounds: give more of them with --rounds" in capsys.readouterr().err
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "--steps", "320"]) == 0
    assert "5 rounds, 2 of them done" in capsys.readouterr().out
    run_training(settings, tmp_path / "whole")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.parametrize("engine", ["sb3", "compiled"])
def test_episodes_that_cannot_be_restored_begin_anew_and_the_run_says_so(engine: str, tmp_path: Path) -> None:
    settings = settings_of({"engine": engine, "env": "Unrepeatable-v0"})
    interrupt(settings, tmp_path / "cut", 2)
    before = runs.open(tmp_path / "cut")
    after = before.checkpoint_rounds[-1]
    assert "new episodes begin" in go_on(tmp_path / "cut")
    run = runs.open(tmp_path / "cut")
    assert run.rounds == [1, 2, 3, 4, 5]
    assert "new episodes begin" in run.metadata["continued"][0]["episodes"]
    first, later = run.records(1), run.records(after + 1)
    assert later["episode_step"][0].as_py() == 0
    assert later["obs"][0].as_py() != first["obs"][0].as_py()  # not the first episodes once more
    assert later["episode"][0].as_py() > max(run.records(after)["episode"].to_pylist())


def test_a_run_killed_in_a_round_goes_on_after_its_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", "CartPole-v1", "--engine", "sb3", "--rounds", "500", "--n-steps", "256", "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "rollsight", *words], stdout=subprocess.DEVNULL)
    while len(list(out.glob("rounds/round-*"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = runs.open(out)
    done, checkpoint = run.rounds[-1], run.checkpoint_rounds[-1]
    assert 1 <= checkpoint <= done
    assert cli.main(["train", "--resume", str(out), "--rounds", str(done + 1)]) == 0
    run = runs.open(out)
    assert run.rounds == list(range(1, done + 2))
    assert run.metadata["continued"][0]["after_round"] == checkpoint
    # An episode that was under way at the checkpoint goes on in the next round.
    last, following = run.records(checkpoint), run.records(checkpoint + 1)
    if following["episode_step"][0].as_py() > 0:
        assert following["episode"][0].as_py() == last["episode"][-1].as_py()
        assert following["episode_step"][0].as_py() == last["episode_step"][-1].as_py() + 1


def test_a_run_killed_in_its_first_round_starts_again(tmp_path: Path) -> None:
    settings = settings_of(CASES["sb3"])

    class Stop(KeyboardInterrupt):
        pass

    with prepared(settings, tmp_path / "cut") as training, pytest.MonkeyPatch.context() as patch:
        patch.setattr("stable_baselines3.PPO.train", lambda self: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            training.train(None)
    assert runs.open(tmp_path / "cut").rounds == []
    assert go_on(tmp_path / "cut") == ""
    run_training(settings, tmp_path / "whole")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("planted",)


def test_a_foreign_checkpoint_executes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_training(settings_of({**CASES["sb3"], "rounds": 1}), Path("run"))
    (checkpoint,) = Path("run/checkpoints").iterdir()
    for content in (pickle.dumps(Evil()), checkpoint.read_bytes()[:-200], b""):
        checkpoint.write_bytes(content)
        assert cli.main(["train", "--resume", "run", "--rounds", "3"]) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert not Path("planted").exists()
    torch.save(Evil(), checkpoint)
    assert cli.main(["train", "--resume", "run", "--rounds", "3"]) == 1
    assert not Path("planted").exists()


def test_only_a_run_of_train_is_resumed_and_with_its_own_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with runs.create(tmp_path / "other", {"run_settings": {"model": "smollm2"}}):
        pass
    with pytest.raises(RollsightError, match="not a run of `rollsight train`"):
        RunSettings.of_run(tmp_path / "other")
    for name, value in {"lr": "fast", "net": 64, "seed": None, "max_grad_norm": "steep"}.items():
        with runs.create(tmp_path / name, {"run_settings": {"env": "CartPole-v1", name: value}}):
            pass
        with pytest.raises(RollsightError, match="holds settings that no run has"):
            RunSettings.of_run(tmp_path / name)
    with runs.create(tmp_path / "older", {"run_settings": {"env": "CartPole-v1", "engine": "fast"}}):
        pass
    assert RunSettings.of_run(tmp_path / "older").engine == "compiled"  # under its former name
    assert cli.main(["train", "--resume", str(tmp_path / "nothing")]) == 1
    assert cli.main(["train", "--resume", str(tmp_path / "other"), "--lr", "0.1", "--random"]) == 1
    assert "leave out --random, --lr" in capsys.readouterr().err
