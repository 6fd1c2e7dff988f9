"""Rules that turn scores into weights, against a count by hand."""

import math

import numpy as np
import pytest
import torch

import rollsight as rs
from rollsight.runs.columns import reasons
from rollsight.selection import DropHarm, DropNegative, DropRandom, RankWeights, Selection, from_text, with_floor

NAN = float("nan")


def random_scores(seed: int, n: int = 60, round: int = 0) -> rs.Scores:
    """Scores with ties, zeros and invalid rows (that score 0); episode numbers are far apart, and negative too."""
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.integers(-6, 5, n) / 4)
    valid = torch.from_numpy(rng.random(n) < 0.85)
    names = torch.tensor([-1, 7, 3, 10**12, 0, -5, 11, 12, 13, 14])
    ids = {"episode": names[torch.from_numpy(rng.integers(0, 10, n))], "round": torch.full((n,), round)}
    return rs.Scores(torch.where(valid, values, 0.0), ids=ids, valid=valid)


def by_hand(scores: rs.Scores, p: float, unit: str, min_keep: int) -> tuple[list[int], int, int]:
    """Dropped records in order, units asked for, units reached."""
    names = range(len(scores)) if unit == "record" else scores.ids[unit].tolist()
    members: dict[int, list[int]] = {}
    for i, name in enumerate(names):
        if scores.valid[i]:
            members.setdefault(name, []).append(i)
    totals = {name: sum(scores.values[rows].tolist()) for name, rows in members.items()}
    requested = math.floor(p * sum(total < 0 for total in totals.values()))
    dropped: list[int] = []
    left, reached = int(scores.valid.sum()), 0
    for name in sorted(members, key=lambda name: (totals[name], name))[:requested]:
        left -= len(members[name])
        if left < min_keep:
            break
        dropped += members[name]
        reached += 1
    return dropped, requested, reached


@pytest.mark.parametrize("unit", ["record", "episode"])
@pytest.mark.parametrize("min_keep", [0, 30, 45])
@pytest.mark.parametrize("p", [0, 0.125, 0.5, 0.77, 1])
def test_drop_negative_is_what_it_says(p, min_keep, unit):
    short = 0
    for seed in range(6):
        scores = random_scores(seed)
        selection = DropNegative(p, unit=unit, min_keep=min_keep)(scores)
        dropped, requested, reached = by_hand(scores, p, unit, min_keep)
        assert selection.dropped.tolist() == dropped
        assert (selection.requested, selection.reached) == (requested, reached)
        expected = scores.valid.to(scores.values.dtype)
        expected[dropped] = 0
        assert torch.equal(selection.weights, expected)
        assert set(selection.dropped.tolist()).isdisjoint((~scores.valid).nonzero().flatten().tolist())
        assert bool(selection.message) == (reached < requested)
        if selection.message:
            assert f"{reached} of {requested} {unit} units" in selection.message
            assert f"min_keep={min_keep} of the {int(scores.valid.sum())} valid" in selection.message
            short += 1
    if min_keep == 0 or p == 0:
        assert short == 0
    elif min_keep == 45 and p >= 0.5:
        assert short == 6, "the floor must have been tested"


def test_the_count_is_the_floor_of_the_negative_share():
    values = torch.tensor([-1.0] * 7 + [0.0] * 5 + [2.0] * 3)
    counts = [len(DropNegative(p)(rs.Scores(values)).dropped) for p in (0, 0.1, 0.15, 0.5, 0.99, 1)]
    assert counts == [0, 0, 1, 3, 6, 7]


def test_ties_go_by_index_and_lowest_first():
    scores = rs.Scores([-1.0, -2.0, -1.0, -2.0, -1.0, 3.0])
    assert DropNegative(0.8)(scores).dropped.tolist() == [1, 3, 0, 2]


def test_all_negative_and_none_negative():
    negative, positive = rs.Scores([-1.0, -3.0, -2.0]), rs.Scores([1.0, 0.0, 2.0])
    everything = DropNegative(1)(negative)
    assert everything.dropped.tolist() == [1, 2, 0]
    assert everything.weights.tolist() == [0.0, 0.0, 0.0]
    kept = DropNegative(1, min_keep=2)(negative)
    assert (kept.dropped.tolist(), kept.requested, kept.reached) == ([1], 3, 1)
    nothing = DropNegative(1)(positive)
    assert (nothing.dropped.tolist(), nothing.weights.tolist(), nothing.message) == ([], [1.0, 1.0, 1.0], "")


def test_a_units_score_is_its_sum():
    """Episode 2 holds the lowest record and yet is good on the whole."""
    scores = rs.Scores([-9.0, 10.0, -1.0, -1.0, 4.0], ids={"episode": torch.tensor([2, 2, 1, 1, 3])})
    selection = DropNegative(1, unit="episode")(scores)
    assert selection.dropped.tolist() == [2, 3]
    assert selection.weights.tolist() == [1, 1, 0, 0, 1]


@pytest.mark.parametrize("p", [-0.1, 1.01, NAN, math.inf, 50])
def test_a_fraction_outside_0_1_is_an_error(p):
    with pytest.raises(rs.RollsightError, match=rf"p={p} is outside \[0, 1\]"):
        DropNegative(p)


def test_a_negative_floor_is_an_error():
    with pytest.raises(rs.RollsightError, match="min_keep=-1 is negative"):
        DropNegative(0.5, min_keep=-1)


@pytest.mark.parametrize("rule", [DropNegative(0.5), DropRandom(DropNegative(0.5))])
def test_scores_that_are_not_finite_are_errors_that_name_the_records(rule):
    with pytest.raises(rs.RollsightError, match=r"2 record\(s\) are NaN or infinite \(index 1, 3\)"):
        rule(rs.Scores([0.0, NAN, -1.0, -math.inf]))
    with pytest.raises(rs.RollsightError, match=r"12 record\(s\) .*index 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\.\)"):
        rule(rs.Scores([NAN] * 12))
    with pytest.raises(rs.RollsightError, match=r"values have shape \(4, 2\).*each=False"):
        rule(rs.Scores(torch.zeros(4, 2)))


def test_an_unknown_unit_is_an_error():
    with pytest.raises(rs.RollsightError, match=r"unit='episode' is not among .*\(record\)"):
        DropNegative(0.5, unit="episode")(rs.Scores([-1.0]))


# --- the random control


@pytest.mark.parametrize("unit", ["record", "episode"])
@pytest.mark.parametrize("seed", range(3))
def test_drop_random_drops_as_many_valid_units(unit, seed):
    scores = random_scores(seed)
    like = DropNegative(0.5, unit=unit)
    selection, model = DropRandom(like, seed=seed)(scores), like(scores)
    assert selection.requested == selection.reached == model.reached > 0
    dropped = selection.dropped.tolist()
    assert bool(scores.valid[dropped].all())
    assert torch.equal(selection.weights == 0, ~scores.valid | torch.isin(torch.arange(len(scores)), selection.dropped))
    if unit == "record":
        assert len(dropped) == len(set(dropped)) == model.reached
    else:
        episodes = set(scores.ids["episode"][dropped].tolist())
        assert len(episodes) == model.reached
        whole = [i for i in range(len(scores)) if scores.valid[i] and int(scores.ids["episode"][i]) in episodes]
        assert sorted(dropped) == whole


def test_drop_random_is_keyed_by_seed_and_round_and_blind_to_scores():
    rule, scores = DropRandom(DropNegative(0.5), seed=3), random_scores(1, round=2)
    dropped = rule(scores).dropped.tolist()
    assert dropped == rule(scores).dropped.tolist() == DropRandom(DropNegative(0.5), seed=3)(scores).dropped.tolist()
    assert dropped != rule(random_scores(1, round=3)).dropped.tolist()
    assert dropped != DropRandom(DropNegative(0.5), seed=4)(scores).dropped.tolist()
    flipped = rs.Scores(-scores.values.flip(0).abs(), ids=scores.ids, valid=scores.valid)
    assert rule(flipped).dropped.tolist()[:3] == dropped[:3]
    positive = (scores.values[dropped] > 0).float().mean()
    assert 0 < positive < 1


def test_drop_random_spreads_over_all_records():
    n = 20
    scores = rs.Scores(-torch.ones(n))
    counts = np.zeros(n)
    for seed in range(400):
        counts[DropRandom(DropNegative(0.25), seed=seed)(scores).dropped.numpy()] += 1
    assert counts.sum() == 400 * 5
    assert counts.min() > 60
    assert counts.max() < 140  # 100 each, standard deviation 9


def test_drop_random_leaves_global_streams_alone():
    scores = random_scores(0)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = DropRandom(DropNegative(0.5))(scores).dropped.tolist()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    torch.manual_seed(99), np.random.seed(99)
    assert DropRandom(DropNegative(0.5))(scores).dropped.tolist() == first


def test_drop_random_says_where_the_floor_stops_it_or_its_model():
    scores = rs.Scores([-1.0] * 10)
    short = DropRandom(DropNegative(1, min_keep=7))(scores)
    assert (short.requested, short.reached, len(short.dropped)) == (10, 3, 3)
    assert "3 of 10 record units" in short.message
    # One long good episode, two short bad ones: dropping the long one instead of both would break the floor.
    uneven = rs.Scores([1.0] * 8 + [-1.0, -1.0], ids={"episode": torch.tensor([0] * 8 + [1, 2])})
    rule = DropNegative(1, unit="episode", min_keep=5)
    assert len(rule(uneven).dropped) == 2
    results = [DropRandom(rule, seed=seed)(uneven) for seed in range(10)]
    assert all(result.weights.sum() >= 5 for result in results)
    assert {result.reached for result in results} == {0, 1, 2}
    assert all(bool(result.message) == (result.reached < 2) for result in results)


def harm_by_hand(scores: rs.Scores, p: float, unit: str) -> list[int]:
    """Dropped records in order, one unit after the other until they carry enough."""
    order, _, _ = by_hand(scores, 1.0, unit, 0)
    names = range(len(scores)) if unit == "record" else scores.ids[unit].tolist()
    wanted = p * sum(-min(0.0, total) for total in scores.sum_by(unit).tolist())
    carried, dropped, last = 0.0, list[int](), None
    for row in order:
        if names[row] != last and carried >= wanted - 1e-6:
            break
        last = names[row]
        carried -= float(scores.values[row])
        dropped.append(row)
    return dropped


@pytest.mark.parametrize("unit", ["record", "episode"])
@pytest.mark.parametrize("p", [0, 0.1, 0.5, 0.9, 1])
def test_drop_harm_drops_the_fewest_that_carry_enough(p, unit):
    for seed in range(6):
        scores = random_scores(seed)
        selection = DropHarm(p, unit=unit)(scores)
        assert selection.dropped.tolist() == (harm_by_hand(scores, p, unit) if p else [])
        assert selection.requested == selection.reached
    assert DropHarm(1, unit=unit)(scores).dropped.tolist() == DropNegative(1, unit=unit)(scores).dropped.tolist()


def test_drop_harm_leaves_scores_without_harm_alone_and_keeps_the_floor():
    assert len(DropHarm(1)(rs.Scores([0.0, 1.0, 2.0])).dropped) == 0
    even = rs.Scores([-1.0] * 10)
    assert DropHarm(0.5)(even).dropped.tolist() == [0, 1, 2, 3, 4]
    uneven = rs.Scores([-1.0, -1.0, -9.0, 3.0])
    assert DropHarm(0.5)(uneven).dropped.tolist() == [2]
    assert [len(DropRandom(rule)(uneven).dropped) for rule in (DropHarm(1), DropHarm(0.8), DropNegative(0.8))] == [
        3,
        1,
        2,
    ]
    short = DropHarm(1, min_keep=7)(even)
    assert (short.requested, short.reached) == (10, 3)
    assert "3 of 10 record units" in short.message
    with pytest.raises(rs.RollsightError, match=r"p=1.5 is outside"):
        DropHarm(1.5)


# --- text and floors


def test_rules_from_text():
    assert from_text("negative:0.5") == DropNegative(0.5)
    assert from_text("negative:1", unit="episode", min_keep=3) == DropNegative(1.0, unit="episode", min_keep=3)
    assert from_text("random:0.125", seed=7) == DropRandom(DropNegative(0.125), seed=7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("negative", "'negative' has no fraction"),
        ("negative:", "'negative:' has no fraction"),
        ("negative:half", "'negative:half' has no fraction"),
        ("negative:2", r"p=2\.0 is outside"),
        ("worst:0.5", "'worst:0.5' is unknown"),
        ("0.5", "'0.5' has no fraction"),
    ],
)
def test_text_that_is_no_rule_is_an_error(text, message):
    with pytest.raises(rs.RollsightError, match=message):
        from_text(text)


def test_a_floor_is_only_ever_raised():
    assert with_floor(DropNegative(0.5), 64) == DropNegative(0.5, min_keep=64)
    assert with_floor(DropHarm(0.5), 64) == DropHarm(0.5, min_keep=64)
    assert with_floor(DropNegative(0.5, min_keep=100), 64) == DropNegative(0.5, min_keep=100)
    assert with_floor(DropRandom(DropNegative(0.5), seed=2), 64) == DropRandom(DropNegative(0.5, min_keep=64), seed=2)

    def own(scores):
        return None

    assert with_floor(own, 64) is own


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (DropNegative(0.5), "negative score"),
        (DropNegative(0.5, unit="episode"), "negative score of its episode"),
        (DropHarm(0.5), "most negative score"),
        (DropRandom(DropNegative(0.5)), "random control"),
        (DropRandom(DropNegative(0.5, unit="episode")), "random control of its episode"),
    ],
)
def test_a_rule_says_why_it_drops(rule, reason):
    scores = random_scores(0)
    selection = rule(scores)
    assert selection.reason == reason
    assert len(selection.dropped)
    kept = (selection.weights > 0).numpy()
    given = reasons(kept, scores.valid.numpy(), selection.reason).to_pylist()
    assert given == [
        None if stays else reason if valid else "invalid" for stays, valid in zip(kept, scores.valid, strict=True)
    ]


def test_reasons_of_a_rule_of_ones_own():
    weights, dropped = torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([0, 2])
    kept, valid = weights.numpy() > 0, np.array([True, True, True, False])
    each = rs.selection.Selection(weights, dropped, 2, 2, reason=["too long", None, None, None])
    assert reasons(kept, valid, each.reason).to_pylist() == ["too long", None, "selection rule", "invalid"]
    silent = rs.selection.Selection(weights, dropped, 2, 2)
    assert reasons(kept, valid, silent.reason).to_pylist() == ["selection rule", None, "selection rule", "invalid"]
    everything = np.ones(4, bool)
    assert str(reasons(everything, everything, "").type) == "string"  # one type in every round
    with pytest.raises(rs.RollsightError, match="`reason` has 3 texts for 4 records"):
        rs.selection.Selection(weights, dropped, 2, 2, reason=["a", "b", "c"])


@pytest.mark.parametrize("power", [0.0, 0.6, 2.0])
def test_rank_weights_fall_with_the_rank_of_the_score_and_have_a_mean_of_1(power):
    scores = random_scores(3)
    selection = RankWeights(power)(scores)
    weights, valid = selection.weights, scores.valid
    assert float(weights[~valid].abs().sum()) == 0
    assert float(weights[valid].mean()) == pytest.approx(1)
    order = scores.values[valid].argsort(descending=True, stable=True)
    ranks = torch.arange(1, len(order) + 1).double()
    assert torch.allclose(weights[valid][order] / weights[valid][order][0], ranks**-power)
    assert len(selection.dropped) == selection.requested == selection.reached == 0


def test_a_power_below_0_is_an_error():
    with pytest.raises(rs.RollsightError, match="power is -1; give a number of at least 0"):
        RankWeights(-1)


def test_random_control_of_a_rule_of_ones_own_drops_as_many_records():
    def lowest_four(scores):
        dropped = scores.values.argsort()[:4]
        weights = torch.ones_like(scores.values)
        weights[dropped] = 0
        return Selection(weights, dropped, requested=4, reached=4)

    scores = random_scores(1, round=2)
    control = DropRandom(lowest_four, seed=3)
    dropped = control(scores).dropped.tolist()
    assert len(dropped) == control(scores).reached == 4
    assert dropped == with_floor(control, 2)(scores).dropped.tolist()
    assert dropped != lowest_four(scores).dropped.tolist()
