"""`rollsight train --engine compiled`: the other engine's run folder, whose snapshots replay and explain the run."""

from __future__ import annotations

import csv
import itertools
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3 import PPO

pytest.importorskip("jax", reason="the compiled engine needs JAX (pip install 'rollsight[fast]')")

from rollsight import RollsightError, cli, runs, score_records
from rollsight.analysis.fidelity.faults import Buffer
from rollsight.errors import Diverged
from rollsight.selection import DropNegative
from rollsight.snapshot import Snapshot
from rollsight.training import run as training_run
from rollsight.training.compiled import environments, influence, trainer
from rollsight.training.compiled.trainer import CompiledTrainer, Plan
from rollsight.training.run import RunSettings, prepared, run_training


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_run, "RECORDS_PER_ROUND", 256)


def run_of(folder: Path, env: str = "CartPole-v1", engine: Any = "compiled", **settings: Any) -> runs.Run:
    given = {"rounds": 3, "eval_episodes": 0, "snapshots": "all", "selection": "negative:0.5", **settings}
    run_training(RunSettings(env, engine=engine, **given), folder)
    return runs.open(folder)


def snapshots_of(run: runs.Run) -> list[Snapshot]:
    return [Snapshot.load(run.snapshot_path(round)) for round in run.snapshot_rounds]


def distance(one: Any, other: Any) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def weights(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in snapshot.policy.module.named_parameters()}


def columns(run: runs.Run, round: int) -> dict[str, Any]:
    table = run.records(round)
    return {name: table[name].to_pylist() for name in table.column_names}


CASES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adam": {"optimizer": "adam", "lr": 3e-4},
    "random drop": {"selection": "random:0.5"},
    "episodes": {"unit": "episode", "selection": "negative:0.9"},
    "gaussian": {"env": "Pendulum-v1", "optimizer": "adam"},
    "four environments": {"envs": 4},
    "four environments with time limits": {"envs": 4, "env": "Acrobot-v1", "rounds": 9},
    "discrete observations": {"env": "FrozenLake-v1"},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_snapshots_replay_into_the_next_round(settings: dict[str, Any], tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", **settings)
    frozen = snapshots_of(run)
    assert len(frozen) == settings.get("rounds", 3)
    for now, then in itertools.pairwise(frozen):
        replay = now.replay()
        assert distance(weights(now), weights(then)) > 1e-5
        assert distance(replay.parameters, weights(then)) < 1e-5
        (steps,) = run.sql(f"select optimizer_steps from rounds where round = {now.round}").fetchall()[0]
        assert replay.steps == steps
    for snapshot in frozen:
        stored = columns(run, snapshot.round)
        theirs = score_records(snapshot.policy, snapshot.records, objective=snapshot.rule.policy_term()).values.numpy()
        assert np.abs(np.array(stored["score_return"]) - theirs).max() < 1e-5 * np.abs(theirs).max()
        assert snapshot.weights is not None
        assert stored["kept"] == (snapshot.weights > 0).tolist()
        rows = np.array(stored["valid"])
        assert not any(stored["kept"][i] for i in np.flatnonzero(~rows))
        Buffer(snapshot.records, 0.99, 0.95)  # raises where the advantages are not GAE of the stored columns
    pooled = run.metadata["stepper"] == "Pool" and settings.get("envs", 1) > 1  # a single one resets at once
    assert pooled == any(not bool(snapshot.records.valid.all()) for snapshot in frozen)


@pytest.mark.parametrize("env", ["FrozenLake-v1", "CartPole-v1"])
def test_the_run_folder_is_the_other_engines(env: str, tmp_path: Path) -> None:
    compiled, host = (run_of(tmp_path / engine, env, engine, eval_episodes=3) for engine in ("compiled", "sb3"))
    for round in (1, 2, 3):
        mine, theirs = (run.records(round).schema for run in (compiled, host))
        assert mine.names == theirs.names
        if compiled.metadata["stepper"] == "Pool":  # which does not say how its episodes started
            mine, theirs = (schema.remove(schema.get_field_index("episode_start")) for schema in (mine, theirs))
        assert mine == theirs
    mine_in_rounds, theirs_in_rounds = (run.sql("select * from rounds limit 0").columns for run in (compiled, host))
    assert set(mine_in_rounds) == set(theirs_in_rounds) | {"grad_norm"}  # Stable-Baselines3 does not keep it
    assert compiled.evaluation_rounds == host.evaluation_rounds == [0, 1, 2, 3]
    assert set(compiled.metadata) == set(host.metadata) | {"engine", "stepper"}
    first, theirs_first = snapshots_of(compiled)[0], snapshots_of(host)[0]
    assert distance(weights(first), weights(theirs_first)) == 0
    assert compiled.sql("select count(*) from rounds where trust_split_half is null").fetchall() == [(0,)]


def test_same_seed_same_run_with_and_without_evaluation_and_scores(tmp_path: Path) -> None:
    runs_ = [
        run_of(tmp_path / name, snapshots="none", selection=selection, eval_episodes=episodes, envs=2)
        for name, episodes, selection in (("a", 0, None), ("b", 5, None), ("c", 5, "negative:0"))
    ]
    for round in (1, 2, 3):
        one, *others = (run.records(round).to_pylist() for run in runs_)
        assert all(other == one for other in others)
    (means,) = {tuple(run.sql("select return from evaluations").fetchall()) for run in runs_[1:]}
    assert len(means) == 20


def test_rounds_compile_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_of(tmp_path / "first", "FrozenLake-v1", rounds=1)
    with jax.log_compiles():
        run_of(tmp_path / "second", "FrozenLake-v1", rounds=5, selection="random:0.9", seed=4)
    compiled = [message.split()[1] for message in caplog.messages if message.startswith("Compiling")]
    assert len(compiled) == len(set(compiled))  # nothing again for a later round


def test_it_learns(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", optimizer="adam", lr=1e-3, rounds=25, snapshots="none", eval_episodes=10)
    before, after = run.sql(
        "select avg(return) filter (round = 0), avg(return) filter (round >= 24) from evaluations"
    ).fetchall()[0]
    assert after > 100 > 50 > before


def test_every_other_round_is_scored(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", every=2)
    assert run.sql("select scored, dropped > 0 from rounds order by round").fetchall() == [
        (False, False),
        (True, True),
        (False, False),
    ]
    assert "score_return" not in run.records(1).column_names


def test_minigrid_trains_with_the_papers_network(tmp_path: Path) -> None:
    pytest.importorskip("minigrid", reason="needs minigrid")
    run = run_of(tmp_path / "run", "MiniGrid-Empty-5x5-v0", rounds=2)
    one, two = snapshots_of(run)
    assert distance(one.replay().parameters, weights(two)) < 1e-5


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lake"
    assert cli.main(["train", "FrozenLake-v1", "--engine", "compiled", "--rounds", "2", "--out", str(out)]) == 0
    assert "iif p=0.5, sgd at 0.005, 2 rounds" in capsys.readouterr().out
    assert cli.main(["top", str(out), "--round", "2", "--bottom", "--n", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows if isinstance(rows, list) else rows["records"]) == 3
    assert (
        cli.main(["train", "CartPole-v1", "--algo", "a2c", "--engine", "compiled", "--out", str(tmp_path / "no")]) == 1
    )
    assert "use --engine sb3" in capsys.readouterr().err


def test_optimisers_that_are_not_covered_are_named(tmp_path: Path) -> None:
    with pytest.raises(RollsightError, match=r"optimizer='rmsprop' is not covered .*engine='sb3'"):
        run_of(tmp_path / "run", optimizer="rmsprop")


def test_schedules_follow_the_hosts() -> None:
    model = PPO(
        "MlpPolicy", "CartPole-v1", n_steps=64, seed=1, device="cpu", learning_rate=lambda left: 0.01 * left, n_epochs=2
    )
    compiled = CompiledTrainer(model, environments.make("CartPole-v1", 1, (3,)), Plan())
    rates = list[float]()
    compiled.train(4, lambda summary: rates.append(summary["learning_rate"]))
    assert rates == pytest.approx([0.0075, 0.005, 0.0025, 0.0])
    assert model.num_timesteps == 256
    assert float(next(iter(model.policy.optimizer.state.values()))["step"]) == 8


def test_missing_jax_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("rollsight.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(RollsightError, match=r"needs the package jax: pip install 'rollsight\[fast\]'"):
        run_of(tmp_path / "run")


def test_the_example_switches_arms_in_the_middle_of_a_run(tmp_path):
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "switch_arm.py"))

    def rows(then: str, at: int) -> list[dict[str, str]]:
        out = tmp_path / f"{then}{at}.csv"
        example["main"]("ppo", then, env="CartPole-v1", at=at, rounds=20, out=out)
        with out.open(newline="") as file:
            return list(csv.DictReader(file))

    plain, switched = rows("ppo", 20), rows("iif", 10)
    assert switched[:2] == plain[:2]  # rounds 0 and 10
    assert [float(row["kept_frac"]) == 1 for row in switched[1:]] == [True, False]
    assert switched[2] != plain[2]


class Broken(RuntimeError):
    pass


def broken(*_: Any, **__: Any) -> Any:
    raise Broken("no luck")


PARTS: dict[str, tuple[Any, str]] = {
    "scores": (influence, "scores"),
    "selection": (DropNegative, "__call__"),
    "trust line": (trainer, "trust_line"),
    "snapshot": (Snapshot, "take"),
    "evaluation": (trainer, "play"),
    "records in the run folder": (trainer, "round_columns"),
}


@pytest.mark.parametrize("part", PARTS)
def test_watching_never_stops_training(part: str, tmp_path: Path) -> None:
    run_of(tmp_path / "whole", eval_episodes=1, selection="negative:0" if part in ("scores", "selection") else None)
    settings = RunSettings("CartPole-v1", engine="compiled", rounds=3, eval_episodes=1, snapshots="all")
    asked = replace(settings, selection="negative:0.5" if part in ("scores", "selection") else None)
    with prepared(asked, tmp_path / "run") as training, pytest.MonkeyPatch.context() as patch:
        seen = list[Any]()

        def after_the_first(rounds: float, summary: Any) -> None:
            seen.append(summary)
            if summary["round"] == 1:
                patch.setattr(*PARTS[part], broken)

        with pytest.warns(UserWarning, match=rf"^round 2: no {part}.*\(Broken: no luck\)") as caught:
            training.train(after_the_first)
    assert len([w for w in caught if "no luck" in str(w.message)]) == 1  # said once, of two rounds
    run = runs.open(tmp_path / "run")
    assert run.rounds == [1, 2, 3]
    said = run.sql("select warnings from rounds order by round").fetchall()
    assert said[0] == (None,)
    assert all(f"no {part}" in text for (text,) in said[1:])
    if part in ("scores", "selection"):
        assert seen[1]["kept_frac"] == seen[2]["kept_frac"] == 1.0
        assert seen[0]["kept_frac"] < 1
    else:  # the same policies
        whole = runs.open(tmp_path / "whole")
        for round in (1, 2, 3) if part != "records in the run folder" else (1,):
            assert run.records(round)["obs"].equals(whole.records(round)["obs"])
        norms = [one.sql("select update_norm from rounds order by round").fetchall() for one in (run, whole)]
        assert norms[0] == norms[1]


def test_ctrl_c_and_a_display_that_fails(tmp_path: Path) -> None:
    def stop(rounds: float, summary: Any) -> None:
        raise KeyboardInterrupt

    settings = RunSettings("CartPole-v1", engine="compiled", rounds=2, eval_episodes=0)
    with pytest.raises(KeyboardInterrupt):
        run_training(settings, tmp_path / "stopped", on_progress=stop)
    with pytest.warns(UserWarning, match="Broken: no luck"):
        run_training(settings, tmp_path / "display", on_progress=broken)
    assert runs.open(tmp_path / "display").rounds == [1, 2]


class NaNReward(CartPoleEnv):
    """Pays NaN at the 300th step."""

    steps = 0

    def step(self, action: Any) -> Any:
        NaNReward.steps += 1
        obs, reward, *rest = super().step(action)
        return obs, float("nan") if NaNReward.steps == 300 else reward, *rest


def test_a_round_with_a_nan_reward_is_stored_and_named(tmp_path: Path) -> None:
    gym.register("NaNReward-v0", NaNReward, max_episode_steps=500)
    NaNReward.steps = 0
    with pytest.raises(Diverged, match=r"the reward at step 43 of environment 0 in round 2 is nan"):
        run_of(tmp_path / "run", "NaNReward-v0")
    run = runs.open(tmp_path / "run")
    assert run.rounds == [1, 2]
    rewards = np.array(run.records(2)["reward"].to_pylist(), dtype=float)
    assert np.flatnonzero(np.isnan(rewards)).tolist() == [43]


def test_what_is_opened_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, closed = list[Any](), list[Any]()
    make, close = environments.make, environments.Copies.close

    def counted(*args: Any, **keywords: Any) -> Any:
        opened.append(make(*args, stepper="gymnasium", **keywords))
        return opened[-1]

    monkeypatch.setattr(environments, "make", counted)
    monkeypatch.setattr(environments.Copies, "close", lambda self: (closed.append(self), close(self)))
    run_of(tmp_path / "run", rounds=2, eval_episodes=1)
    assert len(opened) == 4  # of training, and of an evaluation before it and after each round
    assert set(opened) == set(closed)
    with pytest.raises(RollsightError):
        run_of(tmp_path / "run")  # taken
