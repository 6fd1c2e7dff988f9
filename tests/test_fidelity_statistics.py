"""The statistics of fidelity, on made-up numbers: LDS, weight steps, removal, corrupted episodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from test_stacked import snapshot_of
from torch import Tensor

from rollsight.analysis.fidelity import faults, perturbation
from rollsight.analysis.fidelity.lds import half_masks, lds
from rollsight.errors import RollsightError
from rollsight.records import Records


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
    drawn = [spearmanr(sums[i], outcome[i]).statistic for i in rng.integers(0, 40, (500, 40))]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert table.rows["score"].low == pytest.approx(low, abs=0.05)
    assert table.rows["score"].high == pytest.approx(high, abs=0.05)


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
    corrupted = buffer.corrupted(rewards - 2 * rewards * hit, values)
    changed = (corrupted.advantages - records.advantages).abs().numpy() > 1e-3
    assert changed[hit].any()
    assert not changed[~hit].any()
    with pytest.raises(RollsightError, match=r"not GAE\(gamma=0\.5"):
        faults.Buffer(records, 0.5, 0.95)


def test_a_score_that_knows_the_fault_finds_every_corrupted_episode() -> None:
    records = snapshot_of(n_envs=3).records
    buffer = faults.Buffer(records, 0.99, 0.95)
    assert records.rewards is not None
    env_rewards, stale = np.ones(24), np.full(24, 30.0)
    scorers = {
        "knows": lambda corrupted: -(corrupted.advantages - records.advantages).abs(),
        "blind": lambda corrupted: torch.zeros(24),
    }
    found = faults.detect(buffer, scorers, env_rewards, stale, seed=0)
    assert {(one.fault, one.score): one.auroc for one in found} == {
        ("reward sign flipped", "knows"): 1.0,
        ("reward sign flipped", "blind"): 0.5,
        ("stale values", "knows"): 1.0,
        ("stale values", "blind"): 0.5,
    }
