"""Fidelity: statistics on made-up numbers, scores against their definitions, and the command as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from test_stacked import snapshot_of
from torch import Tensor

from rollsight import cli, objectives, runs, score_records, targets
from rollsight.adapters.sb3.rollouts import collect
from rollsight.analysis import faults, outcomes, perturbation, stacked, variants
from rollsight.analysis.lds import half_masks, lds
from rollsight.errors import RollsightError
from rollsight.records import Records
from rollsight.studies import training_run
from rollsight.studies.environments import make_environments
from rollsight.studies.training_run import RunSettings, run_training


def made_up(n: int = 60, episodes: int = 12) -> Records:
    generator = torch.Generator().manual_seed(1)
    advantages = torch.randn(n, generator=generator)
    return Records(
        torch.zeros(n, 1), torch.zeros(n), torch.zeros(n), advantages, ids={"episode": torch.arange(n) % episodes}
    )


@pytest.mark.parametrize(("unit", "units"), [("record", 59), ("episode", 12)])
def test_masks_are_exactly_half_of_the_valid_units(unit: str, units: int) -> None:
    records = made_up()
    valid = torch.ones(60, dtype=torch.bool)
    valid[7] = False
    records = Records(records.obs, records.actions, records.log_probs, records.advantages, ids=records.ids, valid=valid)
    masks = half_masks(records, unit, 30, seed=3)
    assert masks.units == units
    assert (masks.kept.sum(1) == units // 2).all()
    assert not masks.weights[:, 7].any()
    totals = torch.from_numpy(masks.totals(records.advantages))
    direct = (masks.weights.double() * records.advantages.double()).sum(1)
    torch.testing.assert_close(torch.from_numpy(masks.kept).double() @ totals, direct)
    again, other = half_masks(records, unit, 30, seed=3), half_masks(records, unit, 30, seed=4)
    assert np.array_equal(masks.kept, again.kept)
    assert not np.array_equal(masks.kept, other.kept)


def test_lds_of_made_up_outcomes() -> None:
    records = made_up()
    masks = half_masks(records, "record", 200, seed=0)
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(60)
    outcome = np.exp(0.3 * masks.kept @ truth)  # ranks only: any increasing function of the sums
    noisy = outcome + rng.standard_normal(200) * outcome.std()
    scores = {
        "true": torch.from_numpy(truth),
        "opposite": torch.from_numpy(-truth),
        "half right": torch.from_numpy(truth + rng.standard_normal(60)),
        "random": torch.from_numpy(rng.standard_normal(60)),
        "constant": torch.ones(60),
    }
    table = lds(masks, scores, outcome, noisy, "half right", seed=0)
    assert table.rows["true"].lds == pytest.approx(1.0)
    assert table.rows["opposite"].lds == pytest.approx(-1.0)
    half = table.rows["half right"]
    assert half.lds == pytest.approx(spearmanr(masks.kept @ scores["half right"].numpy(), outcome).statistic)
    assert half.low < half.lds < half.high < table.rows["true"].low
    assert half.difference == 0.0
    assert table.rows["true"].difference == pytest.approx(1 - half.lds)
    assert 0 < table.rows["true"].difference_low < 1 - half.lds < table.rows["true"].difference_high
    assert np.isnan(table.rows["constant"].lds)
    assert table.ceiling == pytest.approx(spearmanr(outcome, noisy).statistic)
    assert table.null_low < 0 < table.null_high < half.low
    # A score of 60 units correlates by chance, and 200 masks add their own noise.
    assert table.null_high == pytest.approx(1.96 * np.sqrt(1 / 59 + 1 / 199), abs=0.05)
    assert table.spread == pytest.approx(np.std(outcome, ddof=1))


def test_bootstrap_intervals_are_those_of_resampled_ranks() -> None:
    """Against the plain way: draw masks with replacement and rank again."""
    masks = half_masks(made_up(), "record", 40, seed=0)
    rng = np.random.default_rng(1)
    truth = rng.standard_normal(60)
    sums = masks.kept @ truth
    outcome = sums + rng.standard_normal(40) * sums.std()
    table = lds(masks, {"score": torch.from_numpy(truth)}, outcome, outcome, "score", seed=0)
    drawn = [spearmanr(sums[i], outcome[i]).statistic for i in rng.integers(0, 40, (2000, 40))]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert table.rows["score"].low == pytest.approx(low, abs=0.05)
    assert table.rows["score"].high == pytest.approx(high, abs=0.05)


@pytest.mark.parametrize("settings", [{}, {"action": "box"}, {"algo": "A2C"}])
def test_leave_self_out_scores_see_only_the_others(settings: dict[str, Any]) -> None:
    """Against scoring each record with a target over all the others."""
    snapshot = snapshot_of(**settings)
    records, policy = snapshot.records, snapshot.policy
    objective = variants.objective_of(snapshot.rule)
    scores = variants.score_variants(snapshot, targets.Return(), seed=0)
    prepared = objective.prepare(records)
    raw = variants.with_advantage(objective, "raw")  # of records whose advantages are normalised already
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


def test_weight_steps_and_removal_read_a_linear_outcome_exactly() -> None:
    records = made_up()
    masks = half_masks(records, "episode", 4, seed=0)
    effect = torch.randn(60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def outcome(weights: Tensor) -> np.ndarray[Any, Any]:
        return np.asarray(5 + weights.double() @ effect)

    directions = perturbation.step_directions(effect.float(), records.valid, seed=0)
    steps = perturbation.read_steps(
        directions,
        {"right": effect, "twice": 2 * effect},
        outcome(perturbation.step_weights(directions)),
        5 + float(effect.sum()),
    )
    assert [one.eta for one in steps] == [*perturbation.ETAS] * 2
    for one in steps:
        expected = 1.0 if one.prediction == "right" else 0.5
        assert one.slope == pytest.approx(expected, rel=1e-4)
        assert one.along_score == pytest.approx(expected, rel=1e-4)
        assert one.rank == pytest.approx(1.0)

    curve = perturbation.read_removal(
        outcome(perturbation.removal_weights(masks, effect, seed=0)), 5 + float(effect.sum())
    )
    totals = np.sort(masks.totals(effect))
    for one in curve:
        gone = int(one.fraction * 12)
        assert one.lowest == pytest.approx(-totals[:gone].sum(), abs=1e-6)
        assert one.highest == pytest.approx(-totals[12 - gone :].sum(), abs=1e-6)
        assert one.random_low <= one.random <= one.random_high


@pytest.mark.parametrize("envs", [1, 3])
def test_gae_is_the_hosts_and_a_fault_stays_in_its_episodes(envs: int) -> None:
    records = snapshot_of(n_envs=envs).records
    buffer = faults.Buffer(records, 0.99, 0.95)
    rewards, values = (np.asarray(column, np.float64) for column in (records.rewards, records.values))
    np.testing.assert_allclose(buffer.advantages(rewards, values), records.advantages, rtol=1e-4, atol=1e-4)
    hit = buffer.episode == np.unique(buffer.episode)[1]
    spoilt = buffer.spoilt(rewards - 2 * rewards * hit, values)
    changed = (spoilt.advantages - records.advantages).abs().numpy() > 1e-3
    assert changed[hit].any()
    assert not changed[~hit].any()
    with pytest.raises(RollsightError, match=r"not GAE\(gamma=0\.5"):
        faults.Buffer(records, 0.5, 0.95)


def test_a_score_that_knows_the_fault_finds_every_spoilt_episode() -> None:
    records = snapshot_of(n_envs=3).records
    buffer = faults.Buffer(records, 0.99, 0.95)
    assert records.rewards is not None
    paid, stale = np.ones(24), np.full(24, 30.0)
    scorers = {
        "knows": lambda spoilt: -(spoilt.advantages - records.advantages).abs(),
        "blind": lambda spoilt: torch.zeros(24),
    }
    found = faults.detect(buffer, scorers, paid, stale, seed=0)
    assert {(one.fault, one.score): one.auroc for one in found} == {
        ("reward sign flipped", "knows"): 1.0,
        ("reward sign flipped", "blind"): 0.5,
        ("stale values", "knows"): 1.0,
        ("stale values", "blind"): 0.5,
    }


def test_auroc() -> None:
    positive = np.array([False, True, False, True])
    assert faults.auroc(np.array([0.0, 1.0, 0.5, 2.0]), positive) == 1.0
    assert faults.auroc(np.array([1.0, 1.0, 1.0, 1.0]), positive) == 0.5
    assert faults.auroc(np.array([3.0, 1.0, 0.5, 2.0]), positive) == 0.5


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
    """Three rounds of 256 records of CartPole with Adam, with snapshots of the last two."""
    out = tmp_path_factory.mktemp("runs") / "cart"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "RECORDS_PER_ROUND", 256)
        run_training(
            RunSettings("CartPole-v1", optimizer="adam", lr=1e-3, rounds=3, eval_episodes=0, snapshots="all"), out
        )
    (out / "snapshots" / "round-000001.pt").unlink()
    return out


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["fidelity", str(run), "--round", "3", "--masks", "40", "--out", str(out), "--json"]
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
    assert json.loads((out / "result.json").read_text()) == result
    files = {path: path.stat().st_mtime_ns for path in out.glob("outcomes-*.npz")}
    assert files

    figure = tmp_path / "f.svg"
    assert cli.main([*arguments[:-1], "--figure", str(figure)]) == 0  # resumed, and as tables
    printed = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.glob("outcomes-*.npz")} == files
    for said in (
        "40 random halves of 256 records",
        "ceiling",
        "null band",
        "replay",
        "mask",
        "target: return",
        "buffer",
    ):
        assert said in printed
    assert f"{result['lds']:.2f}" in printed
    assert figure.exists()


def test_returns_and_episodes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["fidelity", str(run), "--round", "2", "--masks", "4", "--unit", "episode", "--returns", "--json"])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    episodes = runs.open(run).sql("select count(distinct episode) from records where round = 2").fetchall()[0][0]
    assert result["units"] == episodes
    assert set(result["outcomes"]) == {"fresh", "train", "returns"}
    assert 0 < result["outcomes"]["returns"]["spread"] < 200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--round", "9"], "has no round 9: its rounds are 1-3"),
        (["--round", "1"], "has no snapshots: the rounds with snapshots are 2-3"),
        (["--round", "2", "--masks", "2"], "at least 4 masks"),
        (["--round", "2", "--figure", "f.txt"], "f.txt"),
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
    assert variants.objective_of(snapshot_of(algo="A2C").rule) == objectives.A2C("raw")
    assert variants.objective_of(snapshot_of(normalize_advantage=False).rule) == objectives.PPO("raw")
