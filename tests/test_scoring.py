"""Every backend against the oracle, the oracle against formulas written out in `zoo`, and what is refused."""

import pytest
import torch
import zoo
from torch import nn
from zoo import COVERED, FULL, KINDS, LOOSE, Kind, held_out, some_actions

import rollsight as rs
from rollsight import objectives as ob
from rollsight import targets as tg

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


# Every target and every objective, normalisation and term at least once.
SETTINGS = {
    "return": lambda k, p: (tg.Return(), ob.PPO()),
    "return-full": lambda k, p: (tg.Return(), ob.PPO("raw", **FULL)),
    "return-held-out": lambda k, p: (tg.Return(held_out(k, p)), ob.A2C(**FULL)),
    "action": lambda k, p: (some_actions(k, p, 1), ob.PPO("chunk:3", clip_range=0.1)),
    "actions": lambda k, p: (some_actions(k, p, 3), ob.A2C("buffer")),
    "actions-each": lambda k, p: (some_actions(k, p, 3, each=True), ob.PPO(entropy=0.1)),
    "objective": lambda k, p: (tg.Objective(ob.PPO(**FULL)), ob.PPO(**FULL)),
    "objective-held-out": lambda k, p: (tg.Objective(ob.A2C(**FULL), held_out(k, p)), ob.PPO("chunk:4")),
}
SEQUENCE_SETTINGS = {
    "sequence": lambda k, p: (tg.Sequence(), ob.PPO()),
    "sequence-held-out": lambda k, p: (tg.Sequence(held_out(k, p)), ob.PPO("raw")),
}


def settings_of(kind: Kind):
    return {**SETTINGS, **SEQUENCE_SETTINGS} if kind.sequences else SETTINGS


# --- the oracle, against formulas


@pytest.mark.parametrize("setting", [*SETTINGS, *SEQUENCE_SETTINGS])
def test_the_oracle_equals_the_written_out_formulas(setting):
    for name in ("transformer", "lstm") if setting in SEQUENCE_SETTINGS else ("mlp", "gsde", "masked", "transformer"):
        kind = KINDS[name]
        policy = kind.policy()
        records = kind.records(policy)
        target, objective = settings_of(kind)[setting](kind, policy)
        scores = rs.score_records(policy, records, target, objective, backend="oracle")
        expected = zoo.reference_scores(policy, records, target, objective)
        assert zoo.relative_error(scores.values, expected) < 1e-11, name
        assert expected[4].abs().max() == 0, "the invalid row"
        assert expected.abs().max() > 1e-4


def test_the_clip_is_active_on_some_records_of_the_zoo_and_not_on_others():
    kind = KINDS["mlp"]
    policy = kind.policy()
    records = kind.records(policy, garbage=False)
    clipped, free = (zoo.reference_gradients(policy, records, ob.PPO(clip_range=c)) for c in (0.2, 1e6))
    differs = (clipped != free).any(1)
    assert 1 <= int(differs.sum()) <= len(records) - 3


# --- every backend, against the oracle


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", [*COVERED, *LOOSE], ids=repr)
def test_every_backend_equals_the_oracle(kind, dtype):
    policy = kind.policy(dtype)
    records = kind.records(policy, 6 if kind.sequences else 9)
    for name, setting in settings_of(kind).items():
        if dtype == torch.float32 and name not in ("return", "actions-each", "objective", "sequence"):
            continue  # what rounding does is seen in these
        target, objective = setting(kind, policy)
        expected = rs.score_records(policy, records, target, objective, backend="oracle")
        for backend in ["auto", "double_backward", *(["jvp"] if kind.forward_mode else [])]:
            scores = rs.score_records(policy, records, target, objective, backend=backend)
            error = zoo.relative_error(scores.values, expected.values)
            assert error <= TOLERANCE[dtype], (name, scores.backend, error)
            if expected.tokens is not None and scores.tokens is not None:
                assert zoo.relative_error(scores.tokens, expected.tokens) <= TOLERANCE[dtype], (name, scores.backend)
            assert scores.values.dtype == dtype
            assert scores.values[4].abs().sum() == 0, "the invalid row"
            if backend == "auto":
                best = "jvp" if kind.forward_mode else "double_backward"
                assert scores.backend == ("layerwise" if kind.covered else best)
                assert scores.reason if kind.covered else repr(kind.refused) in scores.reason


@pytest.mark.parametrize("backend", ["layerwise", "jvp", "double_backward", "auto"])
@pytest.mark.parametrize("case", ["one record", "zero advantages", "all valid", "on policy"])
def test_edges_of_the_buffer(case, backend):
    for kind in (KINDS["mlp"], KINDS["transformer"]):
        policy = kind.policy()
        shift = 0.0 if case == "on policy" else 0.3
        records = kind.records(policy, 1 if case == "one record" else 9, garbage=False, shift=shift)
        if case == "zero advantages":
            records = records.with_advantages(torch.zeros_like(records.advantages))
        for objective in (ob.PPO("raw"), ob.PPO(), ob.A2C(entropy=0.1)):
            expected = rs.score_records(policy, records, objective=objective, backend="oracle").values
            scores = rs.score_records(policy, records, objective=objective, backend=backend).values
            if case == "zero advantages":
                assert expected.abs().max() == scores.abs().max() == 0
            else:
                assert zoo.relative_error(scores, expected) <= 1e-10


def test_a_record_with_advantage_zero_gets_its_score_too():
    """It does not move the target, but normalisation makes its advantage in the loss another one."""
    policy = KINDS["mlp"].policy()
    records = KINDS["mlp"].records(policy, garbage=False)
    scores = rs.score_records(policy, records, objective=ob.PPO("buffer"))
    assert float(records.advantages[2]) == 0
    assert abs(float(scores.values[2])) > 1e-4


@pytest.mark.parametrize("kind", [KINDS["shared_trunk"], KINDS["gaussian"], KINDS["transformer"]], ids=repr)
def test_a_step_along_a_records_gradient_moves_the_target_by_its_score(kind):
    policy = kind.policy()
    records, objective, target = kind.records(policy), ob.PPO(**FULL), tg.Return()
    scores = rs.score_records(policy, records, target, objective).values
    gradients = zoo.reference_gradients(policy, records, objective)
    parameters = [p for p in policy.module.parameters() if p.requires_grad]
    start = nn.utils.parameters_to_vector(parameters).detach()
    for i in (0, 1, 3, 7):
        eps, values = 1e-5 / float(gradients[i].norm()), []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(start + sign * eps * gradients[i], parameters)
            values.append(float(zoo.reference_target(policy, records, target)))
        assert (values[0] - values[1]) / (2 * eps) == pytest.approx(float(scores[i]), rel=1e-6, abs=1e-9)


# --- what layerwise refuses


@pytest.mark.parametrize("kind", LOOSE, ids=repr)
def test_layerwise_refuses_by_name_what_it_does_not_cover(kind):
    policy = kind.policy()
    records = kind.records(policy)
    with pytest.raises(rs.RollsightError, match="layerwise") as refusal:
        rs.score_records(policy, records, backend="layerwise")
    assert repr(kind.refused) in str(refusal.value)


@pytest.mark.parametrize("name", ["positions", "time_first", "flattened"])
@pytest.mark.parametrize("n", [zoo.STEPS, 1])
def test_as_many_records_as_steps_are_not_taken_for_one_another(name, n):
    kind = KINDS[name]
    policy = kind.policy()
    records = kind.records(policy, n, garbage=False)
    with pytest.raises(rs.RollsightError, match="leading dimension"):
        rs.score_records(policy, records, backend="layerwise")
    expected = rs.score_records(policy, records, backend="oracle").values
    auto = rs.score_records(policy, records)
    assert auto.backend == "jvp"
    assert zoo.relative_error(auto.values, expected) <= 1e-10


class OneByOne(nn.Module):
    """Calls its layer once per record, without a record dimension where `bare`."""

    def __init__(self, bare: bool) -> None:
        super().__init__()
        self.layer, self.bare = nn.Conv1d(1, zoo.ACTIONS, zoo.OBS), bare

    def forward(self, obs):
        rows = [self.layer(row[None] if self.bare else row[None, None]).flatten() for row in obs]
        return torch.stack(rows), None


@pytest.mark.parametrize("bare", [True, False])
def test_a_layer_called_record_by_record_is_not_taken_for_a_batch(bare):
    """With one record such calls look like a batch of one, so looking at one record does not tell."""
    kind = Kind("one_by_one", lambda: OneByOne(bare))
    policy = kind.policy()
    records = kind.records(policy, 3, garbage=False)
    with pytest.raises(rs.RollsightError, match="layerwise"):
        rs.score_records(policy, records, backend="layerwise")
    expected = rs.score_records(policy, records, backend="oracle").values
    assert zoo.relative_error(rs.score_records(policy, records).values, expected) <= 1e-10


def test_a_single_step_does_not_hide_a_missing_record_dimension():
    """T = 1: the positional embedding is called with one row for one record, and with one row for nine."""
    policy = KINDS["positions"].policy()
    full = KINDS["positions"].records(policy, garbage=False)
    records = rs.Records(full.obs[:, :1], full.actions[:, :1], full.log_probs[:, :1], full.advantages[:, :1])
    with pytest.raises(rs.RollsightError, match=r"positions\.weight"):
        rs.score_records(policy, records, backend="layerwise")
    expected = rs.score_records(policy, records, backend="oracle").values
    assert zoo.relative_error(rs.score_records(policy, records).values, expected) <= 1e-10


def test_a_sum_of_zero_does_not_hide_a_missing_record_dimension():
    """Everyone took the same action: with normalised advantages the scores add up to 0, so their sum tells nothing."""
    kind = Kind("constant", zoo.Constant)
    policy = kind.policy()
    obs, actions = torch.randn(8, zoo.OBS).double(), torch.zeros(8, dtype=torch.long)
    log_probs = zoo.categorical(policy.module, obs, actions).log_prob
    records = rs.Records(obs, actions, log_probs, torch.randn(8).double())
    target = tg.Action(obs[:1], actions[:1])
    expected = rs.score_records(policy, records, target, backend="oracle").values
    assert abs(expected.sum()) < 1e-12 < expected.abs().max()
    with pytest.raises(rs.RollsightError, match=r"layer\.weight.*leading dimension"):
        rs.score_records(policy, records, target, backend="layerwise")
    assert zoo.relative_error(rs.score_records(policy, records, target).values, expected) <= 1e-10


def test_a_parameter_that_starts_to_be_trained_is_found():
    """A module is looked at once, and what changes afterwards is still seen."""
    kind = KINDS["gaussian"]
    policy = kind.policy()
    records = kind.records(policy)
    loose = {name: p for name, p in policy.trainable().items() if name.endswith("log_std")}
    for p in loose.values():
        p.requires_grad_(False)
    assert rs.score_records(policy, records).backend == "layerwise"
    for p in loose.values():
        p.requires_grad_(True)
    with pytest.raises(rs.RollsightError, match="log_std"):
        rs.score_records(policy, records, backend="layerwise")
    expected = rs.score_records(policy, records, backend="oracle").values
    assert zoo.relative_error(rs.score_records(policy, records).values, expected) <= 1e-10


@pytest.mark.parametrize("shape", [(7, 1), (8, 2, 1)])
def test_a_layer_that_comes_to_be_called_otherwise_is_found(shape):
    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.actor = nn.Linear(1, 1), nn.Linear(zoo.OBS, zoo.ACTIONS)
            self.over_records = True

        def forward(self, obs):
            own = obs[:, :1] if self.over_records else obs.new_ones(shape)
            scale = self.layer(own).tanh()
            return self.actor(obs) * (scale if self.over_records else 1 + scale.sum()), None

    kind = Kind("switched", Switched)
    policy = kind.policy()
    records = kind.records(policy, 8, garbage=False)
    assert rs.score_records(policy, records).backend == "layerwise"
    policy.module.over_records = False
    expected = rs.score_records(policy, records, backend="oracle").values
    again = rs.score_records(policy, records)
    assert zoo.relative_error(again.values, expected) <= 1e-10


def test_unknown_backend_and_nothing_valid_are_errors():
    policy = KINDS["mlp"].policy()
    records = KINDS["mlp"].records(policy, 3)
    with pytest.raises(rs.RollsightError, match="backend='fast' is unknown"):
        rs.score_records(policy, records, backend="fast")
    nothing = rs.Records(records.obs, records.actions, records.log_probs, records.advantages, valid=[False] * 3)
    for call in (rs.score_records, rs.trust_line):
        with pytest.raises(rs.RollsightError, match="None of the 3 records is valid"):
            call(policy, nothing)


def test_a_policy_that_has_diverged_is_an_error_that_names_the_record():
    for backend in ("auto", "layerwise", "jvp"):
        policy = KINDS["mlp"].policy()
        records = KINDS["mlp"].records(policy, garbage=False)
        records.obs[6] = float("inf")
        with pytest.raises(rs.RollsightError, match=r"NaN or infinite \(index .*6"):
            rs.score_records(policy, records, tg.Action(records.obs[:2], records.actions[:2]), backend=backend)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda e: e._replace(log_prob=e.log_prob[:, None]), r"log-probabilities of shape \(\d, 1\)"),
        (lambda e: e._replace(value=e.value[:, None]), r"`value` of shape \(\d, 1\)"),
        (lambda e: e._replace(entropy=e.entropy.mean()), r"`entropy` of shape \(\)"),
        (lambda e: tuple(e), "returned tuple"),
        (lambda e: rs.Evaluation(*(x.detach() for x in e[:3])), "do not depend on its trainable parameters"),
    ],
)
def test_what_evaluate_returns_is_checked(wrong, message):
    kind = KINDS["mlp"]
    policy = kind.policy()
    records = kind.records(policy, garbage=False)
    wrong_policy = rs.Policy(policy.module, lambda *args: wrong(zoo.categorical(*args)))
    for backend in ("auto", "jvp"):
        with pytest.raises(rs.RollsightError, match=message):
            rs.score_records(wrong_policy, records, objective=ob.PPO(value=0.5, entropy=0.1), backend=backend)
