"""Scores of critics' transitions: every backend against a loop of autograd over records, and what is refused."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import relative_error

import rollsight as rs
from rollsight import objectives as ob
from rollsight import targets as tg

OBS, ACTIONS, N, HELD_OUT = 5, 3, 23, 7
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}


def mlp(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, outputs))


def of_discrete(module, obs, actions):
    """As DQN's network: a value for every action."""
    return rs.Evaluation.of_critics(module(obs).gather(1, actions.long()[:, None]))


def of_continuous(module, obs, actions):
    """As SAC's critics: each sees observation and action."""
    return rs.Evaluation.of_critics(*(critic(torch.cat([obs, actions], 1)) for critic in module))


KINDS = {
    "one critic": (lambda: mlp(OBS, ACTIONS), of_discrete, lambda n: torch.randint(ACTIONS, (n,))),
    "two critics": (
        lambda: nn.ModuleList([mlp(OBS + 2, 1), mlp(OBS + 2, 1)]),
        of_continuous,
        lambda n: torch.randn(n, 2),
    ),
}
OBJECTIVES = {"huber": ob.TD("huber"), "squared": ob.TD(), "half squared": ob.TD(scale=0.5)}


@pytest.fixture(params=KINDS)
def make(request):
    """Makes a critic with transitions and held-out records with returns, in a precision."""
    made, evaluate, act = KINDS[request.param]

    def of(dtype):
        torch.manual_seed(3)

        def some(n):
            actions = act(n)
            actions = actions.to(dtype) if actions.is_floating_point() else actions
            return rs.Records(
                torch.randn(n, OBS, dtype=dtype),
                actions,
                torch.zeros(n, dtype=dtype),
                torch.zeros(n, dtype=dtype),
                returns=2 * torch.randn(n, dtype=dtype),
                valid=torch.arange(n) != 4,
            )

        return rs.Policy(made().to(dtype), evaluate), some(N), some(HELD_OUT)

    return of


def loss_of(objective, q, y):
    """Written as Stable-Baselines3 does, for one record: a loss to be minimised."""
    if objective.loss == "huber":
        return sum(F.smooth_l1_loss(one, y) for one in q)
    return objective.scale * sum(F.mse_loss(one, y) for one in q)


def by_hand(policy, records, held_out, objective):
    """A loop of autograd: <-grad of the record's loss, grad of the mean of -(Q - G)^2 / 2>."""
    parameters = list(policy.module.parameters())

    def q_of(data, i):
        return policy.evaluate(policy.module, data.obs[i : i + 1], data.actions[i : i + 1]).q_values[0]

    def flat(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])

    rows = [i for i in range(len(held_out)) if held_out.valid[i]]
    value = sum(-((q_of(held_out, i) - held_out.returns[i]) ** 2).mean() / 2 for i in rows) / len(rows)
    direction = flat(value)
    scores = []
    for i in range(len(records)):
        if not records.valid[i]:
            scores.append(direction.new_zeros(()))
            continue
        scores.append(-flat(loss_of(objective, q_of(records, i), records.returns[i])) @ direction)
    return torch.stack(scores)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_every_backend_equals_a_loop_of_autograd(make, loss, dtype):
    policy, records, held_out = make(dtype)
    expected = by_hand(policy, records, held_out, OBJECTIVES[loss])
    for backend in ("auto", "layerwise", "jvp", "double_backward", "oracle"):
        scores = rs.score_records(
            policy, records, tg.Calibration(held_out), OBJECTIVES[loss], backend=backend, chunk_size=10
        )
        assert scores.backend == ("layerwise" if backend == "auto" else backend)
        assert scores.target == "calibration"
        assert relative_error(scores.values, expected) <= TOLERANCE[dtype], backend
    assert float(expected[4]) == 0
    assert float(expected.abs().max()) > 1e-4


@pytest.mark.parametrize("measured", ["same", "other"])
def test_the_td_loss_as_a_target_equals_the_oracle(make, measured):
    policy, records, held_out = make(torch.float64)
    target = tg.Objective(ob.TD("huber"), None if measured == "same" else held_out)
    auto, oracle = (rs.score_records(policy, records, target, ob.TD("huber"), backend=b) for b in ("auto", "oracle"))
    assert auto.backend == "layerwise"
    assert relative_error(auto.values, oracle.values) < 1e-10


def test_a_step_along_a_transitions_gradient_moves_the_calibration_by_its_score(make):
    policy, records, held_out = make(torch.float64)
    objective, target = ob.TD("huber"), tg.Calibration(held_out)
    scores = rs.score_records(policy, records, target, objective).values
    parameters = list(policy.module.parameters())
    start = nn.utils.parameters_to_vector(parameters).detach()
    record = records.take(slice(2, 3))
    gradients = torch.autograd.grad(objective.terms(policy(record), record).sum(), parameters)
    step = torch.cat([g.flatten() for g in gradients])
    eps, values = 1e-6 / float(step.norm()), []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(start + sign * eps * step, parameters)
        values.append(float(target.terms(policy(held_out), held_out).sum().detach()) / target.count(held_out))
    assert (values[0] - values[1]) / (2 * eps) == pytest.approx(float(scores[2]), rel=1e-5)


def test_groups_of_held_out_records_are_explained_on_their_own(make):
    policy, records, held_out = make(torch.float64)
    held_out = held_out.take(held_out.valid)
    groups = torch.tensor([0, 1, 1, 0, 1, 1])
    scores = rs.score_records(policy, records, tg.Calibration(held_out, each=True, groups=groups), ob.TD()).values
    for number in (0, 1):
        alone = rs.score_records(policy, records, tg.Calibration(held_out.take(groups == number)), ob.TD()).values
        assert relative_error(scores[:, number], alone) < 1e-10
    whole = rs.score_records(policy, records, tg.Calibration(held_out), ob.TD()).values
    assert relative_error((2 * scores[:, 0] + 4 * scores[:, 1]) / 6, whole) < 1e-10


def test_the_losses_by_numbers():
    records = rs.Records(*(torch.zeros(3) for _ in range(4)), returns=torch.tensor([0.0, 1.0, 5.0]))
    evaluation = rs.Evaluation.of_critics(torch.tensor([0.5, 1.0, 2.0]), torch.tensor([[0.0], [3.0], [5.0]]))
    assert ob.TD("huber").terms(evaluation, records).tolist() == pytest.approx([-0.125, -1.5, -2.5])
    assert ob.TD(scale=0.5).terms(evaluation, records).tolist() == pytest.approx([-0.125, -2.0, -4.5])
    assert tg.Calibration(records).terms(evaluation, records).tolist() == pytest.approx([-0.0625, -1.0, -2.25])


def test_what_does_not_fit_is_refused(make):
    policy, records, held_out = make(torch.float32)
    with pytest.raises(rs.RollsightError, match=r"loss='mean' is unknown; give 'huber' or 'squared'"):
        ob.TD("mean")
    with pytest.raises(rs.RollsightError, match="scale is 0; give a number above 0"):
        ob.TD(scale=0)
    with pytest.raises(rs.RollsightError, match="do not depend on its trainable parameters"):
        rs.score_records(policy, records, tg.Return(), ob.PPO())
    without = rs.Records(records.obs, records.actions, records.log_probs, records.advantages)
    with pytest.raises(rs.RollsightError, match=r"TD needs the targets of its update: give Records\(..., returns=\)"):
        rs.score_records(policy, without, tg.Calibration(held_out), ob.TD())
    with pytest.raises(rs.RollsightError, match="Calibration needs the returns that really came"):
        rs.score_records(policy, records, tg.Calibration(without), ob.TD())
    with pytest.raises(rs.RollsightError, match=r"groups has shape \(2,\) .* one integer for each of the 7 records"):
        tg.Calibration(held_out, each=True, groups=[0, 1])
    weight = next(policy.module.parameters())
    plain = rs.Policy(policy.module, lambda module, obs, actions: rs.Evaluation(weight.sum().expand(len(obs))))
    with pytest.raises(rs.RollsightError, match=r"Calibration needs a critic: let `evaluate` return .*of_critics"):
        rs.score_records(plain, records, tg.Calibration(held_out), ob.TD(), backend="oracle")
    assert math.isfinite(float(rs.score_records(policy, records, tg.Calibration(held_out), ob.TD()).values.sum()))
