"""A round trained many times at once: M copies of its policy, each with its own record weights, stacked by
`torch.func`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.func import grad, vmap

from rollsight.analysis.fidelity.stacked_optimizers import NotStackable, Stacked, StackedOptimizer
from rollsight.arrays import Ints
from rollsight.errors import RollsightError
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.scoring.functional import with_parameters
from rollsight.snapshot import Snapshot
from rollsight.targets import Target
from rollsight.update import approximate_kl, full_minibatches, minibatch_loss, with_normalized_advantages

_FLOATS_AT_ONCE = 2**26  # of parameters, optimiser state and activations: 256 MB
_TOLERANCE = 1e-3  # of the largest gradient entry; a wrong gradient is off by its own size


@dataclass(frozen=True, eq=False)
class Retrained:
    """M policies after the round's update.

    parameters: name -> (M, ...), the trainable ones.
    reason: why they were trained one after another; empty where they were stacked.
    """

    parameters: Stacked
    reason: str = ""


def retrain(snapshot: Snapshot, weights: Tensor, order: int | None = None) -> Retrained:
    """Train the round once for each row of weights (M, N), in the `mask` drop mode (docs/definitions.md, Drop mode).

    Permutations, minibatches, normalised advantages and denominators are those of the full buffer; a weight multiplies
    its record's loss; a minibatch whose weights are all zero is a no-op. Equal to `snapshot.replay("mask", w, order)`
    up to rounding. Policies that cannot be stacked are replayed one by one, and `reason` says why.

    order: None trains in the recorded minibatch order, a number in another one, the same for all rows.
    """
    parts = list(retrain_chunks(snapshot, weights, order))
    names = parts[0][1].parameters
    return Retrained({name: torch.cat([p.parameters[name] for _, p in parts]) for name in names}, parts[0][1].reason)


def retrain_chunks(
    snapshot: Snapshot, weights: Tensor, order: int | None = None, at_once: int | None = None
) -> Iterator[tuple[slice, Retrained]]:
    """`retrain` in chunks of rows, so that memory stays bounded however large M times the policy is.

    at_once: rows per chunk; None takes the number that fits in about 256 MB, at most 128.
    """
    if weights.dim() != 2 or weights.shape[1] != len(snapshot.records):
        raise RollsightError(
            f"weights has shape {tuple(weights.shape)} for {len(snapshot.records)} records; "
            "give (M, N), a row per model."
        )
    weights = weights.to(snapshot.records.log_probs) * snapshot.records.valid_rows
    reason = ""
    try:
        trainer = _Trainer(snapshot)
    except NotStackable as error:
        reason = str(error)
    for rows in _chunks(len(weights), at_once or (8 if reason else min(trainer.fitting, 128))):
        parameters = _one_by_one(snapshot, weights[rows], order) if reason else trainer.train(weights[rows], order)
        yield rows, Retrained(parameters, reason)


def target_values(policy: Policy, parameters: Stacked, target: Target, records: Records, at_once: int = 16) -> Tensor:
    """(M,) the target's value under each of M stacked policies: the mean of its terms over the records it is measured
    on, which are `records` unless it has its own."""
    measured = target.measured_on(records)
    count = max(target.count(measured), 1)

    def value(parameters: Stacked) -> Tensor:
        return target.terms(with_parameters(policy, parameters)(measured), measured).sum() / count

    models = len(next(iter(parameters.values())))
    with torch.no_grad(), no_argument_checks():
        try:
            return torch.cat([vmap(value)(_rows(parameters, rows)) for rows in _chunks(models, at_once)])
        except (
            RuntimeError,
            NotImplementedError,
            ValueError,
            TypeError,
        ):  # whatever an operation that vmap lacks raises
            return torch.stack([value(_rows(parameters, i)) for i in range(models)])


class _Trainer:
    """What stacked training needs of a snapshot, found out once."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.policy, self.optimizer = snapshot.rebuild()
        parameters = self.policy.trainable()
        first = full_minibatches(len(snapshot.records), snapshot.rule, snapshot.minibatch_order())[0]
        minibatch = self._minibatch(first)
        saved = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                loss = minibatch_loss(self.policy(minibatch), minibatch, snapshot.rule, torch.ones(len(first)))
            expected = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        # A parameter without a gradient is one that the host's optimiser skips, weight decay and momentum included.
        self.trained = {name: p for (name, p), g in zip(parameters.items(), expected, strict=True) if g is not None}
        self.start = {name: p.detach() for name, p in parameters.items()}
        self.fitting = max(1, _FLOATS_AT_ONCE // (saved + 6 * sum(p.numel() for p in parameters.values())))
        StackedOptimizer(self.optimizer, self.trained, 1)  # raises for kinds that are not covered
        self._check(minibatch, {n: g for n, g in zip(parameters, expected, strict=True) if g is not None})

    def _check(self, minibatch: Records, expected: Stacked) -> None:
        """`NotStackable` unless two stacked models get the gradients that one gets by itself."""
        try:
            two = {name: torch.stack([p, p]) for name, p in self.start.items()}
            found, _ = self._gradients(two, minibatch, torch.ones(2, len(minibatch)))
        except Exception as error:  # vmap fails in whatever way the policy's operations come across it
            raise NotStackable(f"its policy does not run stacked ({str(error).splitlines()[0]})") from error
        scale = max(float(g.abs().max()) for g in expected.values())
        worst = max(float((found[name] - g).abs().max()) for name, g in expected.items())
        if not worst <= _TOLERANCE * scale:
            raise NotStackable(f"its stacked gradients differ from its own by {worst:.2g}, of {scale:.2g}")

    def _minibatch(self, index: Ints) -> Records:
        records = self.snapshot.records
        rows = torch.from_numpy(index).to(records.log_probs.device)
        return with_normalized_advantages(records.take(rows), self.snapshot.rule)

    def _gradients(self, parameters: Stacked, minibatch: Records, w: Tensor) -> tuple[Stacked, Tensor]:
        """Gradients (M, ...) of the minibatch loss with weights w (M, B), and (M,) the approximate KL before it."""
        fixed = {name: p for name, p in parameters.items() if name not in self.trained}

        def loss(moving: Stacked, fixed: Stacked, w: Tensor) -> tuple[Tensor, Tensor]:
            evaluation = with_parameters(self.policy, {**moving, **fixed})(minibatch)
            kl = approximate_kl(evaluation, minibatch).detach()
            return minibatch_loss(evaluation, minibatch, self.snapshot.rule, w), kl

        moving = {name: parameters[name] for name in self.trained}
        with no_argument_checks():
            return vmap(grad(loss, has_aux=True))(moving, fixed, w)  # type: ignore[no-any-return]

    def train(self, weights: Tensor, order: int | None) -> Stacked:
        """The parameters after the update, one model per row of weights (m, N)."""
        rule, models = self.snapshot.rule, len(weights)
        rng = self.snapshot.minibatch_order(order)
        optimizer = StackedOptimizer(self.optimizer, self.trained, models)
        parameters = {name: p.expand(models, *p.shape).clone() for name, p in self.start.items()}
        active = torch.ones(models, dtype=torch.bool, device=weights.device)
        for _ in range(rule.n_epochs):
            for index in full_minibatches(len(self.snapshot.records), rule, rng):
                w = weights[:, torch.from_numpy(index).to(weights.device)]
                gradients, kl = self._gradients(parameters, self._minibatch(index), w)
                if rule.target_kl is not None:
                    active = active & ~(kl > 1.5 * rule.target_kl)  # nan goes on, as in the host
                    if not bool(active.any()):
                        return parameters
                clipped = _clip(gradients, rule.max_grad_norm)
                parameters = optimizer.step(parameters, clipped, active & (w != 0).any(1))
        return parameters


def _clip(gradients: Stacked, largest: float) -> Stacked:
    """Every model's gradient, scaled down to the norm `largest` where it is longer, as `clip_grad_norm_` does."""
    length = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
    factor = (largest / (length + 1e-6)).clamp(max=1.0)
    return {name: g * factor.view(-1, *[1] * (g.dim() - 1)) for name, g in gradients.items()}


def _one_by_one(snapshot: Snapshot, weights: Tensor, order: int | None) -> Stacked:
    trained = []
    for w in weights:
        policy = snapshot.replay("mask", w, order).policy
        trained.append({name: p.detach() for name, p in policy.trainable().items()})
    return {name: torch.stack([parameters[name] for parameters in trained]) for name in trained[0]}


def _rows(parameters: Stacked, rows: slice | int) -> Stacked:
    return {name: p[rows] for name, p in parameters.items()}


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


@contextmanager
def no_argument_checks() -> Iterator[None]:
    """torch.distributions checks its arguments by looking at values, which stacked tensors do not allow."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
