"""Fidelity: scores against their definitions, fresh buffers, kept outcomes, and the command as a user meets it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_stacked import snapshot_of
from torch import Tensor

from rollsight import cli, objectives, runs, score_records, targets
from rollsight.analysis.fidelity import (
    Fidelity,
    FidelitySettings,
    measure_fidelity,
    outcomes,
    pages,
    perturbation,
    stacked,
    variants,
)
from rollsight.analysis.fidelity.round import FidelityRound
from rollsight.analysis.fidelity.trust import trust_over_training
from rollsight.environments.make import make_environments
from rollsight.errors import RollsightError
from rollsight.playing.collect import collect
from rollsight.records import Records
from rollsight.snapshot import Snapshot
from rollsight.training import run as training_run
from rollsight.training.run import RunSettings, run_training


@pytest.mark.parametrize("settings", [{}, {"action": "box"}, {"algo": "A2C"}])
def test_leave_self_out_scores_see_only_the_others(settings: dict[str, Any]) -> None:
    """Against scoring each record with a target over all the others."""
    snapshot = snapshot_of(**settings)
    records, policy = snapshot.records, snapshot.policy
    objective = snapshot.rule.policy_term()
    scores = variants.score_variants(snapshot, targets.Return(), seed=0)
    prepared = objective.prepare(records)
    raw = replace(objective, advantage="raw")  # of records whose advantages are normalised already
    for i in (0, 5, 23):
        others = torch.arange(len(records))[torch.arange(len(records)) != i]
        target = targets.Return(records.take(others))
        alone = score_records(policy, prepared.take(slice(i, i + 1)), target, raw).values[0]
        expected = alone * (len(others) / len(records))  # the mean stays over all records
        torch.testing.assert_close(scores[variants.SELF_OUT][i], expected, rtol=1e-3, atol=1e-6)


def test_gradient_norms_are_those_of_single_records() -> None:
    for settings in ({"obs": "image"}, {"action": "box", "use_sde": True}):
        snapshot = snapshot_of(**settings)
        squared = variants.squared_gradient_norms(snapshot.policy, snapshot.records)
        own = snapshot.policy.trainable()
        for i in (0, 11):
            term = snapshot.policy(snapshot.records.take(slice(i, i + 1))).log_prob[0]
            grads = torch.autograd.grad(term, list(own.values()), allow_unused=True)
            expected = sum(float((g**2).sum()) for g in grads if g is not None)
            assert float(squared[i]) == pytest.approx(expected, rel=1e-4)


def test_every_step_with_adam_predicts_a_small_weight_step_better_than_without() -> None:
    """A finite difference of retraining with one optimiser step: the preconditioned trace is its derivative, but for
    the step's own part in the second moments, which is small after 40 steps."""
    snapshot = snapshot_of(batch_size=24, n_epochs=1, max_grad_norm=1e9, learning_rate=1e-3, rounds=40)
    scores = {"plain": snapshot.trace().values, "adam": snapshot.trace(precondition=True).values}
    weights = torch.ones(24) + 0.2 * torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
    parameters = stacked.retrain(snapshot, torch.cat([torch.ones(1, 24), weights])).parameters
    values = stacked.target_values(snapshot.policy, parameters, targets.Return(), snapshot.records).double()
    change = values[1:] - values[0]
    fits = {name: np.corrcoef((weights - 1) @ score, change)[0, 1] for name, score in scores.items()}
    assert fits["adam"] > 0.95
    assert fits["adam"] > fits["plain"]


def test_a_fresh_buffer_is_one_the_host_would_collect() -> None:
    import gymnasium as gym
    from stable_baselines3 import PPO

    from rollsight.adapters.sb3 import InfluenceCallback

    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    influence = InfluenceCallback(snapshots="every:1")
    model.learn(64, callback=influence)
    snapshot = influence.snapshot
    assert snapshot is not None
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    settings = {"gamma": 0.99, "gae_lambda": 0.95}

    def fresh(seed: int, policy: Any = None) -> Records:
        return collect(policy or snapshot.rebuild()[0], make_environments("CartPole-v1", 2), 32, settings, (seed, 1))

    one = fresh(0)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])  # type: ignore[index]
    assert len(one) == 64
    with torch.no_grad():
        assert torch.allclose(snapshot.policy(one).log_prob, one.log_probs, atol=1e-6)
    assert torch.equal(one.advantages, fresh(0).advantages)
    assert not torch.equal(one.advantages, fresh(1).advantages)
    assert not torch.equal(one.obs, snapshot.records.obs)  # type: ignore[arg-type]
    with pytest.raises(RollsightError, match="was trained on Discrete"):
        collect(snapshot_of(obs="discrete").policy, make_environments("CartPole-v1", 1), 8, settings, (0,))
    assert gym.spec("CartPole-v1") is not None


def test_outcomes_are_kept_and_not_made_again(tmp_path: Path) -> None:
    snapshot = snapshot_of()
    calls: list[int] = []

    def measure(parameters: dict[str, Tensor]) -> Tensor:
        first = next(iter(parameters.values()))
        calls.append(len(first))
        return first.flatten(1).sum(1)

    weights = (torch.rand(60, 24, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    first = outcomes.Retraining(snapshot, {"sum": measure}, tmp_path)(weights)["sum"]
    made = sum(calls)
    assert made == 60
    again = outcomes.Retraining(snapshot, {"sum": measure}, tmp_path)(weights)["sum"]
    assert sum(calls) == made
    assert np.array_equal(first, again)
    damaged, whole = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:50])
    assert np.array_equal(outcomes.Retraining(snapshot, {"sum": measure}, tmp_path)(weights)["sum"], first)
    assert sum(calls) == made + 10  # only the chunk that was damaged
    outcomes.Retraining(snapshot, {"sum": measure}, tmp_path)(weights[:10], order=3)
    outcomes.Retraining(snapshot, {"sum": measure}, tmp_path, "another seed")(weights[:10])
    assert sum(calls) == made + 30
    assert whole.exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds of 192 records of CartPole with Adam, with snapshots of the last two."""
    out = tmp_path_factory.mktemp("runs") / "cart"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "RECORDS_PER_ROUND", 192)
        run_training(
            RunSettings(
                "CartPole-v1", engine="sb3", optimizer="adam", lr=1e-4, rounds=3, eval_episodes=0, snapshots="all"
            ),
            out,
        )
    (out / "snapshots" / "round-000001.pt").unlink()
    return out


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["fidelity", str(run), "--round", "3", "--masks", "30", "--out", str(out), "--json"]
    assert cli.main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["semantic"] == "mask"
    assert result["counterfactual"] == "replay"
    assert result["normalisation"] == "buffer"
    fresh, train = result["outcomes"]["fresh"], result["outcomes"]["train"]
    assert result["lds"] == fresh["rows"]["single checkpoint"]["lds"]
    assert result["null_high"] == fresh["null_high"] > 0.1
    assert train["ceiling"] > 0.7
    assert train["rows"]["single checkpoint"]["lds"] > train["null_high"]
    assert train["null_low"] - 0.15 < train["rows"]["random"]["lds"] < train["null_high"] + 0.15
    assert "every step + Adam" in train["rows"]
    assert len(result["removal"]["fresh"]) == len(perturbation.FRACTIONS)
    assert {one["fault"] for one in result["faults"]} == {"reward sign flipped", "stale values"}
    assert (out / "fidelity.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "fidelity.html").read_text()
    assert "<script src" not in page  # nothing is fetched
    assert "30 random halves of 192 records" in page
    assert json.loads((out / "result.json").read_text()) == result
    files = {path: path.stat().st_mtime_ns for path in out.glob("outcomes-*.npz")}
    assert files

    figure = tmp_path / "f.svg"
    check_page(measure_fidelity(FidelitySettings(run, 3, 30, out=out)))
    assert cli.main([*arguments[:-1], "--figure", str(figure)]) == 0  # resumed, and as tables
    printed = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.glob("outcomes-*.npz")} == files
    for said in (
        "30 random halves of 192 records",
        "ceiling",
        "null band",
        "trust line over training",
        "replay",
        "mask",
        "target: return",
        "buffer",
    ):
        assert said in printed
    assert f"{result['lds']:.2f}" in printed
    assert figure.exists()


def check_page(result: Fidelity) -> None:
    lds, removal, steps, trust = (panel.figure for panel in pages.panels(result))
    for trace, table in zip(lds.data, result.lds.values(), strict=True):
        assert list(trace.y) == list(table.rows)
        assert list(trace.x) == [row.lds for row in table.rows.values()]
        assert list(trace.error_x.array) == [row.high - row.lds for row in table.rows.values()]
    edges = [(shape.x0, shape.x1) for shape in lds.layout.shapes]
    for table in result.lds.values():  # the null band and the ceiling
        assert (table.null_low, table.null_high) in edges
        assert (table.ceiling, table.ceiling) in edges
    curves = [(trace.name, list(trace.y)) for trace in removal.data]
    for rows in result.removal["fresh"], result.removal["train"]:
        assert ("lowest scores", [one.lowest for one in rows]) in curves
        assert ("highest scores", [one.highest for one in rows]) in curves
    assert len(steps.data) == 3 * len({one.prediction for one in result.steps["fresh"]}) * 2
    assert list(steps.data[0].y) == [one.rank for one in result.steps["fresh"] if one.prediction == result.reference]
    lines = {trace.name: (list(trace.x), list(trace.y)) for trace in trust.data}
    assert lines["norm of the update"] == ([1, 2, 3], [one.update_norm for one in result.trust_over_training])
    assert lines["own share"][0] == [2, 3]  # the rounds with snapshots


def test_returns_and_episodes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["fidelity", str(run), "--round", "2", "--masks", "4", "--unit", "episode", "--returns", "--json"])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    episodes = runs.open(run).sql("select count(distinct episode) from records where round = 2").fetchall()[0][0]
    assert result["units"] == episodes
    assert set(result["outcomes"]) == {"fresh", "train", "returns"}
    assert result["outcomes"]["returns"]["spread"] >= 0.0


def test_returns_are_of_the_given_policies_on_common_episodes(run: Path) -> None:
    round_ = FidelityRound(FidelitySettings(run, 2, returns=True))
    start = {name: p.detach() for name, p in round_.snapshot.policy.trainable().items()}
    left = {name: 100.0 * torch.tensor([1.0, -1.0]) if name == "action_net.bias" else p for name, p in start.items()}
    with round_.playing() as measures:
        returns = measures["returns"]({n: torch.stack([start[n], left[n], start[n]]) for n in start})
    assert returns[0] == returns[2]
    assert 8 <= returns[1] <= 11  # a cart that is only pushed to the left
    assert returns[0] > 12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--round", "9"], "has no round 9: its rounds are 1-3"),
        (["--round", "1"], "has no snapshots: the rounds with snapshots are 2-3"),
        (["--round", "2", "--masks", "2"], "at least 4 masks"),
        (["--round", "2", "--figure", "f.txt"], "f.txt is not a figure file"),
    ],
)
def test_errors_are_one_sentence(
    run: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fidelity", str(run), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_objectives_follow_the_rule() -> None:
    assert snapshot_of(algo="A2C").rule.policy_term() == objectives.A2C("raw")
    assert snapshot_of(normalize_advantage=False).rule.policy_term() == objectives.PPO("raw")


def test_the_trust_line_covers_the_whole_run(run: Path) -> None:
    opened = runs.open(run)
    lines = trust_over_training(opened, targets.Return())
    assert [line.round for line in lines] == [1, 2, 3]
    assert lines[0].self_share is None  # its snapshot is gone
    kept = opened.sql("select trust_split_half, update_norm, optimizer_steps from rounds order by round").fetchall()
    assert [(line.split_half, line.update_norm, line.optimizer_steps) for line in lines] == kept
    snapshot = Snapshot.load(opened.snapshot_path(3))
    records, objective = snapshot.records, snapshot.rule.policy_term()
    scores = score_records(snapshot.policy, records, objective=objective).values
    own = []
    for i in range(len(records)):
        alone = targets.Return(records.take(torch.tensor([i])))
        own.append(score_records(snapshot.policy, records, alone, objective).values[i] / len(records))
    expected = float(torch.stack(own).abs().sum() / scores.abs().sum())
    assert lines[2].self_share == pytest.approx(expected, rel=1e-3)


def test_small_steps_of_sgd_are_as_long_as_predicted(tmp_path: Path) -> None:
    """With a small learning rate and no clipping first order is all there is."""
    from stable_baselines3 import PPO

    from rollsight.adapters.sb3 import InfluenceCallback

    path = tmp_path / "run"
    options = {"optimizer_class": torch.optim.SGD}
    model = PPO(
        "MlpPolicy", "CartPole-v1", 1e-4, n_steps=192, max_grad_norm=1e9, seed=0, device="cpu", policy_kwargs=options
    )
    model.learn(192, callback=InfluenceCallback(run=path, snapshots="all"))
    result = measure_fidelity(FidelitySettings(path, 1, masks=10))
    found = {one.prediction: one for one in result.steps["train"] if one.eta == 0.05}
    assert found["every step"].rank > 0.98
    assert found["every step"].slope == pytest.approx(1, abs=0.1)
    assert found["single checkpoint"].slope == pytest.approx(1, abs=0.3)  # normalised over the buffer, not by minibatch
