"""What scoring takes and leaves: states and memory, second moments, cross-fitting, and what `Scores` carry."""

import numpy as np
import pytest
import torch
import zoo
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import FULL, KINDS, Kind, held_out, some_actions

import rollsight as rs
from rollsight import objectives as ob
from rollsight import targets as tg
from rollsight.scoring.halves import split_halves

# --- what scoring leaves alone


def with_dropout() -> nn.Module:
    trunk = nn.Sequential(nn.Linear(zoo.OBS, 6), nn.Dropout(0.5), nn.Tanh(), nn.BatchNorm1d(6))
    trunk[3].running_mean += 0.3
    module = zoo.ActorCritic(trunk, 6).train()
    trunk[3].eval()
    return module


def states(module):
    modes = {name: part.training for name, part in module.named_modules()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    kernels = torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()
    return modes, grads, torch.get_rng_state(), np.random.get_state()[1].tolist(), kernels


@pytest.mark.parametrize("raising", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("backend", ["layerwise", "jvp", "double_backward", "oracle", "trust_line"])
def test_gradients_modes_and_random_states_stay_as_they_were(backend, raising):
    kind = Kind("dropout", with_dropout)
    policy = kind.policy()
    records = kind.records(policy)

    def evaluate(module, obs, actions):
        torch.rand(3), np.random.rand(3)
        if raising:
            raise ArithmeticError("from inside evaluate")
        return zoo.categorical(module, obs, actions)

    policy.module.actor.weight.grad = torch.ones_like(policy.module.actor.weight)
    before, statistics = states(policy.module), policy.module.trunk[3].running_mean.clone()
    noisy = rs.Policy(policy.module, evaluate)

    def call():
        with torch.no_grad():
            return (
                rs.trust_line(noisy, records)
                if backend == "trust_line"
                else rs.score_records(noisy, records, backend=backend)
            )

    if raising:
        with pytest.raises(ArithmeticError):
            call()
    else:
        call()
    after = states(policy.module)
    assert after[0] == before[0]
    for name, grad in before[1].items():
        assert (grad is None) == (after[1][name] is None)
        assert grad is None or torch.equal(grad, after[1][name])
    assert torch.equal(after[2], before[2])
    assert after[3:] == before[3:]
    assert torch.equal(policy.module.trunk[3].running_mean, statistics)
    assert all(not module._forward_hooks for module in policy.module.modules())


@pytest.mark.parametrize("raising", [False, True], ids=["returns", "raises"])
def test_kernels_that_forward_mode_cannot_use_are_switched_back_on(raising):
    kind = KINDS["lstm"]
    policy, seen = kind.policy(torch.float32), []

    def evaluate(module, obs, actions):
        seen.append(torch.backends.mkldnn.enabled)
        if not seen[-1] and raising:
            raise ArithmeticError("from inside the forward-mode pass")
        return kind.evaluate(module, obs, actions)

    records = kind.records(policy)
    before = states(policy.module)[-1]
    if raising:
        with pytest.raises(ArithmeticError):
            rs.score_records(rs.Policy(policy.module, evaluate), records, backend="jvp")
    else:
        rs.score_records(rs.Policy(policy.module, evaluate), records, backend="jvp")
    assert False in seen
    assert states(policy.module)[-1] == before
    assert torch.backends.mkldnn.enabled


def test_dropout_is_off_while_scoring():
    kind = Kind("dropout", with_dropout)
    training, evaluating = kind.policy(), kind.policy()
    evaluating.module.eval()
    records = kind.records(evaluating)
    expected = zoo.reference_scores(evaluating, records, tg.Return(), ob.PPO())
    for backend in ("layerwise", "jvp", "double_backward", "oracle"):
        scores = rs.score_records(training, records, backend=backend)
        assert zoo.relative_error(scores.values, expected) <= 1e-10


@pytest.mark.parametrize("case", ["training", "no running statistics"])
def test_batch_norm_over_the_batch_is_an_error_that_names_the_layer(case):
    policy = KINDS["norms"].policy()
    records = KINDS["norms"].records(policy)
    layer = policy.module.trunk[6]
    if case == "training":
        layer.train()
    else:
        layer.running_mean = layer.running_var = None
    for call in (rs.score_records, rs.trust_line):
        with pytest.raises(rs.RollsightError, match=r"BatchNorm layer 'trunk\.6'"):
            call(policy, records)


# --- chunks and memory


@pytest.mark.parametrize("backend", ["layerwise", "jvp", "double_backward", "oracle"])
def test_the_chunk_size_changes_nothing(backend):
    kind = KINDS["mlp"]
    policy = kind.policy()
    records = kind.records(policy, 12)
    for target, options in (
        (tg.Return(), {}),
        (tg.Objective(ob.PPO(**FULL)), {}),
        (tg.Return(), {"cross_fit": True}),
        (some_actions(kind, policy, 5, each=True), {}),
        (tg.Return(), {"optimizer": torch.optim.Adam(policy.module.parameters())}),
    ):
        whole, *others = (
            rs.score_records(policy, records, target, backend=backend, chunk_size=size, **options).values
            for size in (None, 1, 5, 11)
        )
        assert max(zoo.relative_error(other, whole) for other in others) < 1e-9


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation gave."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(part, torch.Tensor):
                self.numbers = max(self.numbers, part.untyped_storage().nbytes() // part.element_size())
        return result


@pytest.mark.parametrize("backend", ["layerwise", "jvp"])
def test_memory_is_bounded_by_the_chunk(backend):
    n, width = 2**16, 64
    module = zoo.ActorCritic(nn.Sequential(nn.Linear(zoo.OBS, width), nn.Tanh(), nn.Linear(width, width)), width)
    policy = rs.Policy(module, zoo.categorical)
    records = rs.Records(torch.randn(n, zoo.OBS), torch.randint(3, (n,)), torch.randn(n) - 2, torch.randn(n))
    with LargestTensor() as largest:
        scores = rs.score_records(policy, records, backend=backend)
    assert len(scores) == n
    # The buffer's own columns and one chunk's activations; N x parameters would be 3e8.
    assert largest.numbers <= max(n * zoo.OBS, 4096 * width)


# --- optimizer=: second moments


def stepped(policy, records, build, steps):
    """The optimiser after some steps on the objective's own gradient; parameters then back where they were."""
    optimizer = build(policy.module.parameters())
    parameters = list(policy.module.parameters())
    start = [p.detach().clone() for p in parameters]
    for k in range(steps):
        optimizer.zero_grad()
        (-zoo.reference_target(policy, records, tg.Return()) * (k + 1)).backward()
        optimizer.step()
    for p, before in zip(parameters, start, strict=True):
        p.data.copy_(before)
    optimizer.zero_grad()
    return optimizer


OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.9), eps=1e-5),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.9)),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.5), amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.9, eps=1e-5),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_direction_is_preconditioned_with_second_moments(name, steps):
    kind = KINDS["mlp"]
    policy = kind.policy()
    records = kind.records(policy)
    objective, target = ob.PPO(**FULL), tg.Return(held_out(kind, policy))
    optimizer = stepped(policy, records, OPTIMIZERS[name], steps)
    direction = zoo.flat_gradient(policy, zoo.reference_target(policy, records, target))
    gradients = zoo.reference_gradients(policy, records, objective)
    square = (gradients.sum(0) / int(records.valid.sum())) ** 2
    group = optimizer.param_groups[0]

    def moment(key):
        state = [optimizer.state[p].get(key, torch.zeros_like(p)) for p in policy.module.parameters()]
        return torch.cat([part.flatten() for part in state])

    if name == "SGD":
        expected = direction
    else:
        second = square
        if steps and name == "RMSprop":
            second = 0.9 * moment("square_avg") + 0.1 * square
        elif steps:
            beta = group["betas"][1]
            second = beta * moment("exp_avg_sq") + (1 - beta) * square
            if name == "amsgrad":
                second = torch.maximum(second, moment("max_exp_avg_sq"))
            second = second / (1 - beta ** (steps + 1))
        expected = torch.where(second > 0, direction / (second.sqrt() + group["eps"]), 0.0)
    if steps and name == "amsgrad":
        assert bool((moment("max_exp_avg_sq") > moment("exp_avg_sq")).any()), "the maximum must matter"
    for backend in ("layerwise", "jvp", "oracle"):
        scores = rs.score_records(policy, records, target, objective, backend=backend, optimizer=optimizer)
        assert zoo.relative_error(scores.values, gradients @ expected) <= 1e-9


@pytest.mark.parametrize("name", ["Adam", "AdamW", "amsgrad", "RMSprop"])
def test_parameters_without_a_second_moment_weigh_nothing(name):
    """Two records that cancel: the gradient of the whole buffer is 0 everywhere, and 1 / eps would swamp everything."""

    class Table(nn.Embedding):
        def forward(self, obs):
            return super().forward(obs), None

    kind = Kind("bare_table", lambda: Table(zoo.CLASSES, zoo.ACTIONS), obs=KINDS["table"].obs)
    policy = kind.policy()
    two = kind.records(policy, 2, garbage=False)
    same = rs.Records(two.obs[[0, 0]], two.actions[[0, 0]], two.log_probs[[0, 0]], [1.0, -1.0])
    target, objective = tg.Action(two.obs[:1], two.actions[:1]), ob.A2C("raw")
    plain = rs.score_records(policy, same, target, objective).values
    assert float(plain[0]) == -float(plain[1]) != 0
    optimizer = OPTIMIZERS[name](policy.module.parameters())
    assert rs.score_records(policy, same, target, objective, optimizer=optimizer).values.tolist() == [0.0, 0.0]


def test_optimisers_that_are_unknown_or_of_another_policy_are_errors():
    policy, other = KINDS["mlp"].policy(), KINDS["mlp"].policy()
    records = KINDS["mlp"].records(policy)
    for optimizer, message in (
        (torch.optim.Adagrad(policy.module.parameters()), "Adagrad is not covered"),
        (torch.optim.RMSprop(policy.module.parameters(), centered=True), "centered=True is not covered"),
        (torch.optim.Adam(other.module.parameters()), r"does not hold the parameter\(s\) actor\.0\.weight"),
        (torch.optim.SGD(other.module.parameters(), lr=1.0), r"does not hold the parameter\(s\) actor\.0\.weight"),
    ):
        with pytest.raises(rs.RollsightError, match=message):
            rs.score_records(policy, records, optimizer=optimizer)


# --- cross-fitting


@pytest.mark.parametrize("name", ["mlp", "gaussian", "lstm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_cross_fitting_scores_each_record_against_the_other_half(name, seed):
    kind = KINDS[name]
    policy = kind.policy()
    records = kind.records(policy, 12)
    scores = rs.score_records(policy, records, cross_fit=True, seed=seed)
    valid = records.valid_rows.nonzero().flatten()
    first = torch.zeros(len(records), dtype=torch.bool)
    first[valid] = split_halves(records.take(valid), seed)
    gradients = zoo.reference_gradients(policy, records, ob.PPO())
    for half in (first, ~first & records.valid_rows):
        other = records.take((~half & records.valid_rows).nonzero().flatten())
        direction = zoo.flat_gradient(policy, zoo.reference_target(policy, records, tg.Return(other)))
        assert zoo.relative_error(scores.values[half], gradients[half] @ direction) <= 1e-10
    plain = rs.score_records(policy, records)
    assert zoo.relative_error(plain.values, scores.values) > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_halves_keep_episodes_whole_and_are_about_equal(seed):
    n = 60
    episode = torch.repeat_interleave(torch.tensor([7, 3, 100, 2, 9, 4]), 10)
    zeros = torch.zeros(n)
    records = rs.Records(zeros[:, None], zeros, zeros, zeros, ids={"episode": episode})
    first = split_halves(records, seed)
    assert all(len(first[episode == e].unique()) == 1 for e in episode.unique())
    assert int(first.sum()) == n // 2
    assert torch.equal(first, split_halves(records, seed))
    single = rs.Records(zeros[:, None], zeros, zeros, zeros, ids={"episode": torch.zeros(n, dtype=torch.long)})
    assert int(split_halves(single, seed).sum()) == n // 2


def test_halves_differ_by_seed():
    zeros = torch.zeros(40)
    records = rs.Records(zeros[:, None], zeros, zeros, zeros)
    assert len({tuple(split_halves(records, seed).tolist()) for seed in range(5)}) == 5


def test_cross_fitting_a_target_with_its_own_records_is_an_error():
    policy = KINDS["mlp"].policy()
    records = KINDS["mlp"].records(policy)
    for target in (some_actions(KINDS["mlp"], policy, 2), tg.Return(held_out(KINDS["mlp"], policy))):
        with pytest.raises(rs.RollsightError, match=f"'{target.name}' has its own"):
            rs.score_records(policy, records, target, cross_fit=True)


# --- leaving a record's own part out


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("target", [tg.Return(), tg.Objective(ob.PPO())])
def test_without_its_own_part_a_record_is_scored_against_the_others(target, chunk_size):
    kind = KINDS["mlp"]
    policy = kind.policy()
    records = kind.records(policy, 12)
    scores = rs.score_records(policy, records, target, leave_self_out=True, chunk_size=chunk_size)
    gradients = zoo.reference_gradients(policy, records, ob.PPO())
    measured, valid = target.measured_on(records), records.valid_rows
    for i in valid.nonzero().flatten().tolist():
        others = valid.clone()
        others[i] = False
        part = measured.take(others.nonzero().flatten())
        f = target.terms(policy(part), part).sum() / target.count(measured)
        expected = gradients[i] @ zoo.flat_gradient(policy, f)
        assert abs(scores.values[i] - expected) <= 1e-10 * scores.values.abs().max()
    assert scores.values[~valid].abs().sum() == 0
    assert zoo.relative_error(rs.score_records(policy, records, target).values, scores.values) > 0.1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cross_fit": True}, "go with cross_fit=True"),
        ({"backend": "jvp"}, "go with backend='jvp'"),
        ({"optimizer": True}, "go with optimizer="),
        ({"target": "held-out"}, "records of its own"),
        ({"target": tg.Objective(ob.PPO(**FULL))}, "every record's own gradient"),
    ],
)
def test_where_the_own_part_cannot_be_left_out(options, named):
    kind = KINDS["mlp"]
    policy = kind.policy()
    records = kind.records(policy)
    if options.get("optimizer"):
        options = {"optimizer": torch.optim.Adam(policy.module.parameters())}
    if options.get("target") == "held-out":
        options = {"target": tg.Return(held_out(kind, policy))}
    with pytest.raises(rs.RollsightError, match=named):
        rs.score_records(policy, records, leave_self_out=True, **options)


# --- Scores


def test_scores_carry_what_was_computed():
    policy = KINDS["mlp"].policy()
    records = KINDS["mlp"].records(policy)
    scores = rs.score_records(policy, records, objective=ob.PPO("chunk:4"))
    assert (scores.target, scores.normalisation, scores.backend) == ("return", "chunk:4", "layerwise")
    assert scores.valid.tolist() == records.valid.tolist()
    assert scores.ids["episode"].tolist() == records.ids["episode"].tolist()
    assert len(scores) == 9


def test_token_scores_add_up_to_the_records():
    policy = KINDS["lstm"].policy()
    records = KINDS["lstm"].records(policy)
    scores = rs.score_records(policy, records)
    assert scores.tokens.shape == records.log_probs.shape
    assert torch.allclose(scores.tokens.sum(1), scores.values)
    assert bool((scores.tokens[~records.valid] == 0).all())


def test_totals_per_unit_leave_out_invalid_records():
    scores = rs.Scores(
        [1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
        ids={"episode": torch.tensor([7, 3, 7, 3, 5, 9])},
        valid=[True, True, True, False, True, False],
    )
    assert scores.sum_by("episode").tolist() == [2.0, 16.0, 5.0]
    assert scores.sum_by("record").tolist() == [1.0, 2.0, 4.0, 16.0]
    each = rs.Scores(torch.stack([scores.values, -scores.values], 1), ids=scores.ids, valid=scores.valid)
    assert each.sum_by("episode").tolist() == [[2.0, -2.0], [16.0, -16.0], [5.0, -5.0]]
    with pytest.raises(rs.RollsightError, match=r"unit='env' is not among .*\(record, episode\)"):
        scores.sum_by("env")
    with pytest.raises(rs.RollsightError, match=r"`valid` has shape \(2,\)"):
        rs.Scores([1.0, 2.0, 3.0], valid=[True, False])
