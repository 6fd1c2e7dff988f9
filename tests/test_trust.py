"""The trust line, against full gradients written out."""

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
import zoo
from scipy.stats import spearmanr
from zoo import KINDS

import rollsight as rs
from rollsight import objectives as ob
from rollsight import targets as tg
from rollsight.scoring.halves import split_halves
from rollsight.scoring.ranks import spearman


def by_tokens(policy, records):
    """(V, P) gradient of every valid log-probability, in order."""
    measured = records.take(records.valid_rows)
    log_prob = policy(measured).log_prob
    return torch.stack([zoo.flat_gradient(policy, lp) for lp in log_prob[measured.valid]]), measured


@pytest.mark.parametrize("name", ["mlp", "table", "norms", "gaussian", "lstm"])
def test_the_trust_line_equals_its_definition(name):
    kind = KINDS[name]
    policy = kind.policy()
    records = kind.records(policy, 14)
    objective = ob.PPO()
    line = rs.trust_line(policy, records, objective, seed=5)
    jacobian, measured = by_tokens(policy, records)
    valid = measured.valid
    first = split_halves(measured, 5)
    in_first = first.view(-1, *[1] * (valid.dim() - 1)).expand(valid.shape)[valid]
    advantages = measured.advantages[valid]
    halves = [(advantages * half) @ jacobian for half in (in_first, ~in_first)]

    def slopes(advantages):
        """d l / d log pi of the clipped surrogate."""
        ratio = (policy(measured).log_prob - measured.log_probs).exp().detach()[valid]
        clipped = ((advantages > 0) & (ratio > 1.2)) | ((advantages < 0) & (ratio < 0.8))
        return torch.where(clipped, 0.0, ratio * advantages)

    c = slopes((advantages - advantages.mean()) / (advantages.std() + 1e-8))
    rows = [(c * (jacobian @ half)).numpy() for half in halves]
    assert line.split_half == pytest.approx(float(spearmanr(*rows).statistic), abs=1e-9)
    assert line.target_gradient_norm == pytest.approx(float((halves[0] + halves[1]).norm()) / len(advantages), rel=1e-9)
    assert line.gradient_ratio == 1.0

    # After a selection: the mean over the kept, over the mean over all.
    weights = torch.where(torch.rand(records.log_probs.shape) < 0.5, 1.0, 0.0).double()
    kept = weights[records.valid_rows][valid]
    expected = ((c * kept) @ jacobian / kept.sum()).norm() / (c @ jacobian / len(c)).norm()
    again = rs.trust_line(policy, records, objective, weights, seed=5)
    assert again.gradient_ratio == pytest.approx(float(expected), rel=1e-9)
    assert again.split_half == line.split_half
    ones = rs.trust_line(policy, records, objective, torch.ones(len(records)), seed=5)
    assert ones.gradient_ratio == 1.0


def test_by_record_weights_serve_sequences_too():
    policy = KINDS["lstm"].policy()
    records = KINDS["lstm"].records(policy)
    weights = (torch.arange(9) % 2).double()
    by_record = rs.trust_line(policy, records, weights=weights)
    by_token = rs.trust_line(policy, records, weights=weights[:, None].expand(9, zoo.STEPS))
    assert by_record == by_token
    assert by_record.gradient_ratio != 1.0


def signal(n=400):
    """A policy and records whose advantages say the same thing everywhere: action 0 is good."""
    policy = KINDS["shared_trunk"].policy()
    obs, actions = torch.randn(n, zoo.OBS).double(), torch.randint(3, (n,))
    with torch.no_grad():
        log_probs = zoo.categorical(policy.module, obs, actions).log_prob
    advantages = torch.where(actions == 0, 2.0, -1.0).double()
    return policy, rs.Records(obs, actions, log_probs, advantages, ids={"episode": torch.arange(n) // 4})


def test_signal_gives_agreeing_halves_and_permuted_advantages_do_not():
    policy, records = signal()
    line = rs.trust_line(policy, records)
    assert line.split_half > 0.9
    assert abs(line.split_half_permuted) < line.split_half - 0.2
    noise = records.with_advantages(torch.randn(len(records)).double())
    assert abs(rs.trust_line(policy, noise).split_half) < 0.7


def test_the_line_is_reproducible_by_seed():
    policy, records = signal(40)
    assert rs.trust_line(policy, records, seed=1) == rs.trust_line(policy, records, seed=1)
    assert rs.trust_line(policy, records, seed=1) != rs.trust_line(policy, records, seed=2)


def test_dropping_what_opposes_the_mean_lengthens_it():
    """The in-sample trap, on advantages that are noise."""
    policy, records = signal()
    noise = records.with_advantages(torch.randn(len(records)).double())
    rule = rs.selection.DropNegative(1.0)
    weights = rule(rs.score_records(policy, noise, tg.Return())).weights
    assert rs.trust_line(policy, noise, weights=weights).gradient_ratio > 1.5


def test_buffers_beyond_a_chunk_are_represented_by_a_part():
    torch.manual_seed(1)
    policy, records = signal(6000)
    line = rs.trust_line(policy, records)
    assert line.split_half > 0.9
    whole = rs.score_records(policy, records, chunk_size=6000)
    direction = zoo.flat_gradient(policy, (policy(records).log_prob * records.advantages).mean())
    assert len(whole) == 6000
    assert line.target_gradient_norm == pytest.approx(float(direction.norm()), rel=0.1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", ["one record", "zero advantages", "nothing kept"])
def test_what_has_no_answer_is_nan(case):
    policy = KINDS["mlp"].policy()
    records = KINDS["mlp"].records(policy, 1 if case == "one record" else 8, garbage=False)
    weights = torch.zeros(len(records)) if case == "nothing kept" else None
    if case == "zero advantages":
        records, weights = records.with_advantages(torch.zeros(8).double()), torch.tensor([1.0, 0.0] * 4)
    line = rs.trust_line(policy, records, weights=weights)
    if case == "nothing kept":
        assert math.isnan(line.gradient_ratio)
    else:
        assert math.isnan(line.split_half)
        assert math.isnan(line.split_half_permuted)
        assert case == "one record" or line.target_gradient_norm == 0


def test_every_number_of_the_line_is_a_plain_float():
    policy = KINDS["gaussian"].policy(torch.float32)
    line = rs.trust_line(policy, KINDS["gaussian"].records(policy))
    assert all(type(number) is float and math.isfinite(number) for number in astuple(line))


@pytest.mark.parametrize("seed", range(3))
def test_spearman_equals_scipys_with_ties(seed):
    rng = np.random.default_rng(seed)
    a, b = (torch.from_numpy(rng.integers(0, 6, 40).astype(float)) for _ in range(2))
    assert spearman(a, b) == pytest.approx(float(spearmanr(a, b).statistic), abs=1e-12)
    assert math.isnan(spearman(a, torch.ones(40)))
