"""The per-record terms and the normalisation of advantages, against numbers worked out by hand."""

import dataclasses
import math

import pytest
import torch
import zoo

import rollsight as rs
from rollsight import objectives as ob
from rollsight.objectives import normalize_advantages


def buffer(n, *, log_probs=None, advantages=None, valid=None):
    return rs.Records(
        torch.zeros(n, 1),
        torch.zeros(n),
        torch.zeros(n) if log_probs is None else log_probs,
        torch.ones(n) if advantages is None else advantages,
        returns=torch.full((n,), 2.0),
        valid=valid,
    )


def test_the_clipped_surrogate_and_its_slope_by_cases():
    ratios = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5, 1.1])
    advantages = torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0, -2.0])
    log_prob = ratios.log().requires_grad_()
    terms = ob.PPO("raw").terms(rs.Evaluation(log_prob), buffer(6, advantages=advantages))
    assert terms.tolist() == pytest.approx([2.0, 2.4, -3.0, 1.0, -1.6, -2.2])
    terms.sum().backward()
    # d(r A)/d(log pi) = r A where the clip is not active, 0 where it is
    assert log_prob.grad.tolist() == pytest.approx([2.0, 0.0, -3.0, 1.0, 0.0, -2.2])


def test_clip_range_is_used():
    evaluation = rs.Evaluation(torch.tensor([1.5]).log())
    assert ob.PPO("raw", clip_range=0.4).terms(evaluation, buffer(1)).tolist() == pytest.approx([1.4])


@pytest.mark.parametrize("objective", [ob.PPO("raw", entropy=0.1, value=0.5), ob.A2C(entropy=0.1, value=0.5)])
def test_entropy_and_value_terms_are_added_with_their_signs(objective):
    log_prob, entropy, value = torch.tensor([-1.0]), torch.tensor([0.7]), torch.tensor([1.5])
    records = buffer(1, log_probs=torch.tensor([-1.0]), advantages=torch.tensor([3.0]))
    policy_term = 3.0 if isinstance(objective, ob.PPO) else -3.0
    terms = objective.terms(rs.Evaluation(log_prob, entropy, value), records)
    assert terms.tolist() == pytest.approx([policy_term + 0.1 * 0.7 - 0.5 * 0.5**2])
    without = objective.terms(rs.Evaluation(log_prob, None, value), records)
    assert without.tolist() == pytest.approx([policy_term + 0.1 * 1.0 - 0.5 * 0.5**2]), "-log pi estimates the entropy"


def test_a_value_term_without_values_is_an_error():
    with pytest.raises(rs.RollsightError, match=r"value=0\.5 but there is no value from `evaluate`"):
        ob.PPO(value=0.5).terms(rs.Evaluation(torch.zeros(2)), buffer(2))
    without = rs.Records(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.ones(2))
    with pytest.raises(rs.RollsightError, match=r"value=0\.5 but there is no `returns` in the records"):
        ob.PPO(value=0.5).terms(rs.Evaluation(torch.zeros(2), None, torch.zeros(2)), without)


def test_invalid_rows_give_a_loss_of_zero_whatever_they_hold():
    records = buffer(2, valid=torch.tensor([True, False]))
    evaluation = rs.Evaluation(torch.tensor([0.0, 1e30]), torch.tensor([0.0, 1e30]), torch.tensor([0.0, 1e30]))
    for objective in (ob.PPO("raw", entropy=1.0, value=1.0), ob.A2C(entropy=1.0, value=1.0)):
        assert objective.terms(evaluation, records)[1] == 0


def test_defaults_are_the_papers_and_the_hosts():
    assert ob.PPO() == ob.PPO(advantage="buffer", clip_range=0.2, entropy=0.0, value=0.0)
    assert ob.A2C() == ob.A2C(advantage="raw", entropy=0.0, value=0.0)
    assert ob.PPO("chunk:64").normalisation == "chunk:64"


# --- normalisation


@pytest.mark.parametrize("n", [64, 65, 130, 129])
@pytest.mark.parametrize("rule", ["raw", "buffer", "chunk:64", "chunk:2"])
def test_normalisation_is_over_valid_records_in_order(rule, n):
    torch.manual_seed(n)
    advantages = torch.randn(n, dtype=torch.float64) * 3 + 1
    valid = torch.rand(n) < 0.9
    expected = zoo._normalised(advantages, valid, rule)
    result = normalize_advantages(advantages, valid, rule)
    assert torch.allclose(result, expected, atol=1e-12)
    garbage = torch.where(valid, advantages, math.nan)
    assert torch.equal(normalize_advantages(garbage, valid, rule), result)


def test_normalisation_by_hand():
    result = normalize_advantages(
        torch.tensor([1.0, 2.0, 3.0, 99.0]), torch.tensor([True, True, True, False]), "buffer"
    )
    assert result.tolist() == pytest.approx([-1.0, 0.0, 1.0, 0.0]), "std with n - 1; the invalid row becomes 0"
    pairs = normalize_advantages(torch.tensor([0.0, 2.0, 10.0, 20.0]), torch.ones(4, dtype=torch.bool), "chunk:2")
    assert pairs.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5] * 2)


def test_a_single_value_and_a_last_chunk_of_one():
    one = torch.tensor([5.0])
    assert normalize_advantages(one, torch.ones(1, dtype=torch.bool), "buffer").tolist() == [5.0]
    three = torch.tensor([1.0, 2.0, 3.0])
    assert normalize_advantages(three, torch.ones(3, dtype=torch.bool), "chunk:2").tolist() == pytest.approx([-1, 0, 1])


def test_equal_advantages_become_zero_not_nan():
    same = normalize_advantages(torch.full((5,), 3.0), torch.ones(5, dtype=torch.bool), "buffer")
    assert same.tolist() == [0.0] * 5


def test_sequences_normalise_over_valid_tokens():
    advantages, valid = torch.randn(4, 3).double(), torch.rand(4, 3) < 0.7
    expected = zoo._normalised(advantages, valid, "buffer")
    assert torch.allclose(normalize_advantages(advantages, valid, "buffer"), expected)
    by_sequence = normalize_advantages(
        torch.tensor([1.0, 2.0, 3.0, 9.0]), valid & torch.tensor([[1], [1], [1], [0]]).bool(), "buffer"
    )
    assert by_sequence[3] == 0


def test_prepare_leaves_the_records_as_they_were():
    records = buffer(3, advantages=torch.tensor([1.0, 2.0, 3.0]))
    assert ob.PPO().prepare(records).advantages.tolist() == pytest.approx([-1.0, 0.0, 1.0])
    assert records.advantages.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("rule", ["minibatch", "chunk:1", "chunk:0", "chunk:", "chunk:x", "", "chunk:-3", "buffer "])
@pytest.mark.parametrize("objective", [ob.PPO, ob.A2C])
def test_an_unknown_normalisation_is_an_error(objective, rule):
    with pytest.raises(rs.RollsightError, match=f"advantage='{rule}' is not a normalisation"):
        objective(advantage=rule)


@pytest.mark.parametrize("clip_range", [0.0, -0.1, math.nan])
def test_a_clip_range_that_is_not_positive_is_an_error(clip_range):
    with pytest.raises(rs.RollsightError, match=f"clip_range is {clip_range}"):
        ob.PPO(clip_range=clip_range)


def sequences(**changes):
    """Two completions, of 3 and 1 tokens, and ratios of 1.5, 1, 0.5 and of 1.1."""
    ratios = torch.tensor([[1.5, 1.0, 0.5], [1.1, 7.0, 7.0]])
    columns = {"valid": torch.tensor([[True, True, True], [True, False, False]])} | changes
    records = rs.Records(torch.zeros(2, 1), torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([2.0, -1.0]), **columns)
    return rs.Evaluation(ratios.log()), records


@pytest.mark.parametrize(
    ("objective", "first", "second"),
    [
        (ob.GRPO("grpo"), [2.4 / 3, 2.0 / 3, 1.0 / 3], -1.1),
        (ob.GRPO("dapo"), [2.4, 2.0, 1.0], -1.1),
        (ob.GRPO("bnpo", clip_high=1.0), [3.0, 2.0, 1.0], -1.1),
        (ob.GRPO("luspo"), [2.4, 2.0, 1.0], -1.1),
        (ob.GRPO("dr_grpo", max_length=4), [0.6, 0.5, 0.25], -1.1 / 4),
        (ob.GRPO("cispo", clip_high=1.2), [2.4 * math.log(1.5), 0.0, math.log(0.5)], -1.1 * math.log(1.1)),
        (ob.GRPO("grpo", importance="sequence"), [2 / 3 * 0.75 ** (1 / 3)] * 3, -1.1),
    ],
)
def test_reductions_of_grpo_by_hand(objective, first, second):
    evaluation, records = sequences()
    terms = objective.terms(evaluation, objective.prepare(records))
    assert terms[0].tolist() == pytest.approx(first)
    assert terms[1].tolist() == pytest.approx([second, 0, 0])


def test_rloo_clips_the_ratio_of_whole_sequences():
    evaluation, records = sequences()
    assert ob.RLOO().terms(evaluation, records).tolist() == pytest.approx([2 * 0.75, -1.1])
    with pytest.raises(rs.RollsightError, match=r"`advantages` has shape \(2, 3\); give one per sequence"):
        ob.RLOO().prepare(records.with_advantages(torch.zeros(2, 3)))


@pytest.mark.parametrize("objective", [ob.GRPO("grpo"), ob.GRPO("cispo", clip_high=5.0), ob.RLOO()])
def test_on_policy_the_old_log_probabilities_are_the_policys_own(objective):
    evaluation, records = sequences()
    log_prob = evaluation.log_prob.requires_grad_()
    dataclasses.replace(objective, on_policy=True).terms(evaluation, records).sum().backward()
    weight = 1.0 if objective != ob.GRPO("grpo") else 1 / 3
    assert log_prob.grad[0].tolist() == pytest.approx([2.0 * weight] * 3)
    assert log_prob.grad[1].tolist() == [-1.0, 0.0, 0.0]


def test_mistakes_in_grpo_are_named():
    with pytest.raises(rs.RollsightError, match="loss='ppo' is unknown; give grpo, dapo"):
        ob.GRPO("ppo")
    with pytest.raises(
        rs.RollsightError, match="'dr_grpo' divides by the longest completion allowed; give max_length="
    ):
        ob.GRPO("dr_grpo")
    with pytest.raises(rs.RollsightError, match=r"need log-probabilities of tokens, \(N, T\), not \(2,\)"):
        ob.GRPO().terms(rs.Evaluation(torch.zeros(2)), buffer(2))
