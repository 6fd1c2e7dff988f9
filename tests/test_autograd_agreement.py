"""Scores are of autograd's gradient, also where a forward and its backward disagree, or a backend refuses by name."""

import re
import warnings

import pytest
import torch
import zoo
from odd_zoo import ODD

import rollsight as rs
from rollsight import objectives as ob
from rollsight import targets as tg
from rollsight.scoring.covering import NoBackend, NotCovered, first_that_covers
from rollsight.scoring.halves import split_halves
from rollsight.scoring.ranks import spearman

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
BACKENDS = ("layerwise", "jvp", "double_backward")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ODD, ids=repr)
def test_a_backend_follows_autograd_or_refuses(kind, dtype):
    policy = kind.policy(dtype)
    records = kind.records(policy, 24, garbage=False)
    for target, objective in ((tg.Return(), ob.PPO()), (tg.Objective(ob.PPO(value=0.5)), ob.PPO(value=0.5))):
        expected = rs.score_records(policy, records, target, objective, backend="oracle").values
        assert expected.abs().max() > 1e-6
        took = []
        for backend in BACKENDS:
            try:
                scores = rs.score_records(policy, records, target, objective, backend=backend)
            except (rs.RollsightError, RuntimeError):
                continue
            assert zoo.relative_error(scores.values, expected) <= TOLERANCE[dtype], backend
            took.append(backend)
        if kind.auto is None:
            assert not took
            with pytest.raises(NoBackend) as refusal:
                rs.score_records(policy, records, target, objective)
            assert re.search(kind.reason, str(refusal.value), re.S), refusal.value
            continue
        scores = rs.score_records(policy, records, target, objective)
        assert (scores.backend, took[0]) == (kind.auto, kind.auto), scores.reason
        assert re.search(kind.reason, scores.reason, re.S), scores.reason
        assert zoo.relative_error(scores.values, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("kind", ODD, ids=repr)
def test_the_trust_line_follows_autograd_or_refuses(kind):
    policy = kind.policy()
    records = kind.records(policy, 24, garbage=False)
    if kind.auto is None:
        with pytest.raises(NoBackend):
            rs.trust_line(policy, records)
        return
    line = rs.trust_line(policy, records)
    valid = records.valid
    log_prob = policy(records).log_prob
    gradient = zoo.flat_gradient(policy, (log_prob * records.advantages)[valid].mean())
    assert line.target_gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-9)
    assert -1 <= line.split_half <= 1


@pytest.mark.parametrize("kind", [k for k in ODD if k.name in ("weight_norm", "round_loose", "hook_loose")], ids=repr)
def test_the_trust_line_has_a_third_backend(kind):
    """Against the definition, with gradients written out."""
    policy = kind.policy()
    records, objective = kind.records(policy, 24, garbage=False), ob.A2C("raw")
    line = rs.trust_line(policy, records, objective, seed=3)
    rows = [zoo.flat_gradient(policy, part) for part in policy(records).log_prob]
    jacobian, first = torch.stack(rows), split_halves(records, 3)
    halves = [(records.advantages * half) @ jacobian for half in (first, ~first)]
    one, other = (records.advantages * (jacobian @ half) for half in halves)
    assert line.split_half == pytest.approx(spearman(one, other), abs=1e-9)


@pytest.mark.parametrize("name", ["rare", "rare_small", "always", "transposed", "rare_rows", "gated_norm"])
def test_half_precision_hides_no_other_use_of_a_weight(name):
    """Rounding is far above what the sum over records would have to tell; the graph is not rounded."""
    kind = next(k for k in ODD if k.name == name)
    policy = kind.policy(torch.bfloat16)
    records = kind.records(policy, 64, garbage=False, shift=0.0)
    with pytest.raises(rs.RollsightError, match=r"trunk\.(a|norm)\.weight"):
        rs.score_records(policy, records, backend="layerwise")
    with pytest.raises(rs.RollsightError, match=r"trunk\.(a|norm)\.weight"):
        rs.score_records(policy, records, tg.Action(records.obs[:2], records.actions[:2]), backend="layerwise")


def test_one_record_in_two_thousand():
    kind = next(k for k in ODD if k.name == "rare")
    policy = kind.policy(torch.float32)
    records = kind.records(policy, 2048, garbage=False)
    scores = rs.score_records(policy, records)
    assert scores.backend == "jvp"
    assert "'trunk.a.weight': it has 2 use(s)" in scores.reason
    place = 1024
    around = slice(place, place + 1)
    target, objective = tg.Return(records), ob.PPO()
    own = objective.prepare(records).take(around)
    loop = rs.score_records(policy, own, target, ob.PPO("raw"), backend="oracle").values
    assert scores.values[place] == pytest.approx(float(loop[0]), rel=1e-5)


@pytest.mark.parametrize("module", [torch.nn.Embedding, torch.nn.EmbeddingBag])
@pytest.mark.parametrize("backend", ["auto", "layerwise", "jvp", "double_backward", "oracle"])
def test_a_gradient_divided_by_a_token_s_frequency_is_an_error_that_names_the_layer(module, backend):
    """The frequency is the batch's, so a record has no gradient of its own."""
    kind = next(k for k in ODD if k.name == "bag")
    policy = kind.policy()
    records = kind.records(policy, 6, garbage=False)
    policy.module.trunk.bag = module(zoo.WORDS, 6, scale_grad_by_freq=True).double()
    with pytest.raises(rs.RollsightError, match=r"'trunk\.bag' has scale_grad_by_freq=True"):
        rs.score_records(policy, records, backend=backend)


# --- every way of scoring, where padding is a token of the text


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("options", [{"cross_fit": True}, {"each": True}, {"tokens": True}, {"precondition": True}])
def test_padding_in_every_way_of_scoring(tied, options):
    kind = next(k for k in ODD if k.name == ("padding_tied" if tied else "padding"))
    policy = kind.policy()
    records = kind.records(policy, 12)
    target = zoo.some_actions(kind, policy, 3, each=True) if "each" in options else tg.Sequence()
    more = {"cross_fit": True} if "cross_fit" in options else {}
    if "precondition" in options:
        more["optimizer"] = torch.optim.Adam(policy.module.parameters())
    expected = rs.score_records(policy, records, target, backend="oracle", **more)
    for backend in ("layerwise", "jvp", "double_backward"):
        for chunk_size in (None, 5):
            scores = rs.score_records(policy, records, target, backend=backend, chunk_size=chunk_size, **more)
            assert zoo.relative_error(scores.values, expected.values) <= 1e-10
            if "tokens" in options and scores.tokens is not None:
                assert zoo.relative_error(scores.tokens, expected.tokens) <= 1e-10


# --- what `reason` says


def test_the_reason_says_why_each_backend_before_does_not_cover_the_policy():
    kind = next(k for k in ODD if k.name == "weight_norm")
    policy = kind.policy()
    reason = rs.score_records(policy, kind.records(policy, garbage=False)).reason
    assert re.match(r"backend 'layerwise' does not cover the trainable parameter\(s\) .*weight\.original0", reason)
    assert "; backend 'jvp' failed: Trying to use forward AD with _weight_norm_interface" in reason
    assert "use backend" not in reason


def test_a_lack_of_memory_is_no_reason_for_another_backend():
    def fails():
        raise torch.OutOfMemoryError("no memory")

    def refuses():
        raise NotCovered("layerwise", "this")

    with pytest.raises(torch.OutOfMemoryError):
        first_that_covers({"layerwise": refuses, "jvp": fails, "double_backward": lambda: 1})


# --- recorded against evaluated log-probabilities


def far(policy, records, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rs.score_records(policy, records, **options)
    return [str(w.message) for w in caught if "log-probabilities" in str(w.message)]


@pytest.mark.parametrize("backend", ["layerwise", "jvp", "double_backward", "oracle"])
@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_log_probabilities_that_are_not_the_recorded_ones_are_said(name, backend):
    kind = zoo.KINDS[name]
    policy = kind.policy()
    same, off = (kind.records(policy, 40, shift=shift) for shift in (0.0, 0.6))
    assert not far(policy, same, backend=backend, on_policy=True)
    assert not far(policy, off, backend=backend), "records of an older policy are nobody's fault"
    (said,) = far(policy, off, backend=backend, on_policy=True)
    assert re.search(r"\d+% of the records are more than 0\.2 nats off", said)
    assert not far(policy, off, backend=backend, on_policy=True), "once for a module"


def test_a_few_records_off_are_not_said():
    policy = zoo.KINDS["mlp"].policy()
    records = zoo.KINDS["mlp"].records(policy, 40, shift=0.0, garbage=False)
    records.log_probs[0] += 3
    assert not far(policy, records, on_policy=True)
    records.log_probs[1:6] += 3
    assert far(policy, records, on_policy=True)


def test_an_objective_that_does_not_read_the_recorded_ones_compares_nothing():
    policy = zoo.KINDS["transformer"].policy()
    records = zoo.KINDS["transformer"].records(policy, 12, shift=0.6)
    assert not far(policy, records, objective=ob.GRPO(on_policy=True), on_policy=True)
    assert far(policy, records, objective=ob.GRPO(), on_policy=True)


def test_comparing_changes_no_score():
    policy = zoo.KINDS["mlp"].policy()
    records = zoo.KINDS["mlp"].records(policy, 40, shift=0.0)
    scores = [rs.score_records(policy, records, on_policy=on_policy).values for on_policy in (False, True)]
    assert torch.equal(*scores)
