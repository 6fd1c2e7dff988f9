"""What targets are, as numbers; their gradients are tested through scores in test_scoring.py."""

import pytest
import torch
import zoo
from zoo import KINDS

import rollsight as rs
from rollsight import targets as tg


def measure(target, policy, records) -> float:
    measured = target.measured_on(records)
    return float(target.terms(policy(measured), measured).sum().detach() / target.count(measured))


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_targets_are_means_over_valid_entries(name):
    kind = KINDS[name]
    policy = kind.policy()
    records, other = kind.records(policy), kind.records(policy, 5, seed=4, garbage=False)
    chosen = [tg.Return(), tg.Return(other), tg.Objective(), tg.Objective(rs.objectives.A2C(value=0.5), other)]
    chosen += [tg.Action(other.obs, other.actions), tg.Action(other.obs[:1], other.actions[:1])]
    chosen += [tg.Sequence(), tg.Sequence(other)] if kind.sequences else []
    for target in chosen:
        measured = target.measured_on(records)
        if target.records is not None or kind.sequences:
            value = measure(target, policy, records)
        else:
            rows = measured.take(measured.valid_rows)
            value = float(target.terms(policy(rows), rows).sum().detach() / target.count(rows))
        expected = float(zoo.reference_target(policy, records, target).detach())
        assert value == pytest.approx(expected, rel=1e-12), target.name


def sequences(advantages, valid):
    n, t = len(valid), len(valid[0])
    zeros = torch.zeros(n, t)
    return rs.Records(zeros, zeros, zeros, torch.tensor(advantages), valid=torch.tensor(valid))


def test_sequence_takes_the_advantage_of_the_last_valid_token():
    records = sequences([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]], [[True, True, False], [True, False, True]])
    log_prob = torch.tensor([[-1.0, -2.0, -4.0], [-1.0, -2.0, -4.0]])
    target = tg.Sequence()
    assert target.terms(rs.Evaluation(log_prob), records).tolist() == [-3.0 * 10, -5.0 * 200]
    assert target.count(records) == 2


def test_sequence_takes_one_advantage_for_a_sequence():
    records = sequences([3.0, 5.0], [[True, True, False], [False, False, False]])
    target, log_prob = tg.Sequence(), torch.full((2, 3), -1.0)
    assert target.terms(rs.Evaluation(log_prob), records).tolist() == [-6.0, 0.0]
    assert target.count(records) == 1


def rewarded(rewards, valid=None, kind="transformer"):
    policy = KINDS[kind].policy()
    records = KINDS[kind].records(policy, len(rewards), garbage=False)
    columns = {"rewards": rewards, "valid": valid}
    return policy, rs.Records(records.obs, records.actions, records.log_probs, records.advantages, **columns)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_reward_is_the_z_score_over_the_valid_records_times_the_sequences_log_probability(chunk_size):
    valid = torch.ones(5, zoo.STEPS, dtype=torch.bool)
    valid[1], valid[3, 2:] = False, False
    policy, records = rewarded([1.0, float("nan"), 3.0, 8.0, -4.0], valid)
    z = torch.tensor([-1.0, 0.0, 1.0, 6.0, -6.0]) / (74 / 3) ** 0.5  # mean 2, n - 1 = 3
    expected = rs.score_records(policy, records.with_advantages(z.double()), tg.Sequence(), rs.objectives.PPO("raw"))
    own = records.with_advantages(z.double())
    objective = rs.objectives.PPO("raw")
    scores = rs.score_records(policy, own, tg.Reward(), objective, chunk_size=chunk_size)
    assert scores.target == "reward"
    assert zoo.relative_error(scores.values, expected.values) < 1e-7
    held_out = rs.score_records(policy, own.take(slice(0, 1)), tg.Reward(records), objective, chunk_size=chunk_size)
    assert zoo.relative_error(held_out.values, expected.values[:1]) < 1e-7


def test_rewards_of_tokens_are_summed_over_the_valid_ones():
    rewards = torch.randn(4, zoo.STEPS)
    valid = torch.rand(4, zoo.STEPS) < 0.6
    valid[:, 0] = True
    policy, by_token = rewarded(torch.where(valid, rewards, torch.nan), valid)
    _, by_record = rewarded((rewards * valid).sum(1), valid)
    one, other = (rs.score_records(policy, records, tg.Reward()).values for records in (by_token, by_record))
    assert zoo.relative_error(one, other) < 1e-6


def test_reward_serves_plain_records():
    policy, records = rewarded([1.0, 2.0, 6.0], kind="mlp")
    z = torch.tensor([-2.0, -1.0, 3.0]).double() / 7**0.5
    one = rs.score_records(policy, records.with_advantages(z), tg.Reward(), rs.objectives.A2C())
    other = rs.score_records(policy, records.with_advantages(z), tg.Return(), rs.objectives.A2C())
    assert zoo.relative_error(one.values, other.values) < 1e-6


@pytest.mark.parametrize(
    ("rewards", "valid", "message"),
    [
        (None, None, "needs rewards"),
        ([0.1, 0.1, 0.1], None, r"0\.1.* in all 3 valid record\(s\), so it cannot be z-scored"),
        ([0.1, 5.0, 0.1], [True, False, True], "in all 2 valid"),
        ([0.1, 5.0, 0.2], [True, False, False], "in all 1 valid"),
        ([0.1, float("nan"), 0.2], None, "the reward is nan in 1 of 3 valid record"),
        ([0.1, 0.2, float("inf")], [True, False, True], "the reward is inf in 1 of 2 valid record"),
    ],
)
def test_rewards_that_cannot_be_z_scored_are_errors(rewards, valid, message):
    valid = None if valid is None else torch.tensor(valid)
    policy, records = rewarded([0.0] * 3 if rewards is None else rewards, valid)
    if rewards is None:
        records = rs.Records(records.obs, records.actions, records.log_probs, records.advantages)
    with pytest.raises(rs.RollsightError, match=message):
        rs.score_records(policy, records, tg.Reward())
    with pytest.raises(rs.RollsightError, match=message):
        rs.score_records(policy, records.take(slice(0, 1)), tg.Reward(records))


def test_sequence_needs_sequences():
    policy = KINDS["mlp"].policy()
    with pytest.raises(rs.RollsightError, match=r"shape \(N, T\), not \(8,\); use targets\.Return"):
        rs.score_records(policy, KINDS["mlp"].records(policy, 8, garbage=False), tg.Sequence())


def test_return_uses_raw_advantages_whatever_the_objective_normalises():
    policy = KINDS["mlp"].policy()
    records = KINDS["mlp"].records(policy, garbage=False)
    objective = rs.objectives.A2C("raw")
    scores = rs.score_records(policy, records, objective=objective).values
    doubled = rs.score_records(policy, records.with_advantages(2 * records.advantages), objective=objective).values
    assert torch.allclose(doubled, 4 * scores)
    shifted = records.with_advantages(records.advantages + 1)
    normalised = rs.objectives.PPO("buffer")
    before, after = (rs.score_records(policy, r, objective=normalised).values for r in (records, shifted))
    assert not torch.allclose(before, after), "the objective ignores the shift, the target must not"


@pytest.mark.parametrize(
    ("obs", "actions", "message"),
    [
        (torch.zeros(2, 5), torch.zeros(3), "2 observations and 3 actions"),
        (torch.zeros(0, 5), torch.zeros(0), "0 observations and 0 actions"),
        (torch.zeros(5), torch.tensor(1), "5 observations and 0 actions"),
        ({}, torch.zeros(1), "`obs` is an empty dict"),
    ],
)
def test_actions_without_their_observations_are_errors(obs, actions, message):
    with pytest.raises(rs.RollsightError, match=message):
        tg.Action(obs, actions)


def test_pairs_may_be_lists_and_arrays():
    policy = KINDS["mlp"].policy(torch.float32)
    records = KINDS["mlp"].records(policy)
    tensor = tg.Action(records.obs[:2], records.actions[:2])
    plain = tg.Action(records.obs[:2].numpy(), records.actions[:2].tolist())
    a, b = (rs.score_records(policy, records, target).values for target in (tensor, plain))
    assert torch.equal(a, b)


class _Certainty:
    """A target without `each` and `records`."""

    name = "certainty"

    def measured_on(self, records):
        return records

    def terms(self, evaluation, records):
        return torch.where(records.valid, -evaluation.entropy, 0.0)

    def count(self, records):
        return int(records.valid.sum())


def test_a_target_that_lacks_a_member_is_an_error():
    policy = KINDS["mlp"].policy()
    with pytest.raises(rs.RollsightError, match="has no 'each' and no 'records'; give it all of name, each, records"):
        rs.score_records(policy, KINDS["mlp"].records(policy), _Certainty())


def test_a_target_measured_on_nothing_valid_is_an_error():
    policy = KINDS["mlp"].policy()
    records = KINDS["mlp"].records(policy, 4, garbage=False)
    nothing = rs.Records(records.obs, records.actions, records.log_probs, records.advantages, valid=[False] * 4)
    with pytest.raises(rs.RollsightError, match="None of the 4 records is valid"):
        rs.score_records(policy, records, tg.Return(nothing))


def test_each_gives_one_column_per_pair():
    policy = KINDS["mlp"].policy()
    records = KINDS["mlp"].records(policy)
    other = KINDS["mlp"].records(policy, 20, seed=4, garbage=False)
    each = rs.score_records(policy, records, tg.Action(other.obs, other.actions, each=True)).values
    assert each.shape == (9, 20), "more pairs than are handled at once"
    mean = rs.score_records(policy, records, tg.Action(other.obs, other.actions)).values
    assert torch.allclose(each.mean(1), mean)
    single = rs.score_records(policy, records, tg.Action(other.obs[18:19], other.actions[18:19])).values
    assert torch.allclose(each[:, 18], single)
