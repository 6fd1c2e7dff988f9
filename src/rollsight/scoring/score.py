"""`score_records`: the inner product of each record's loss gradient with the gradient of a target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from rollsight import objectives, targets
from rollsight.errors import RollsightError
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.scoring import double_backward, jvp, layerwise, oracle
from rollsight.scoring.directions import Direction, gradient, gradient_of, precondition
from rollsight.scoring.halves import split_halves
from rollsight.scoring.layers import Layers
from rollsight.scoring.scores import Scores

Backend: TypeAlias = Literal["auto", "layerwise", "jvp", "double_backward", "oracle"]
Derivatives: TypeAlias = Callable[[Policy, Records, objectives.Objective, list[Direction]], Tensor]

_BACKENDS: dict[str, Derivatives] = {
    "layerwise": layerwise.derivatives,
    "jvp": jvp.derivatives,
    "double_backward": double_backward.derivatives,
    "oracle": oracle.derivatives,
}
_DIRECTIONS_AT_ONCE = 16


def score_records(
    policy: Policy,
    records: Records,
    target: targets.Target | None = None,
    objective: objectives.Objective | None = None,
    backend: Backend = "auto",
    optimizer: torch.optim.Optimizer | None = None,
    *,
    current: Direction | None = None,
    cross_fit: bool = False,
    seed: int = 0,
    chunk_size: int | None = None,
) -> Scores:
    """Score every record: `s_i = <grad l_i(theta), grad f(theta)>` at the module's present parameters.

    l_i is record i's own term of the maximised `objective` (unscaled), f the `target` (a mean), as in Hu et al. 2025,
    section 3: a positive score means that the record pushes the target up.

    target:     what is explained; default `targets.Return()` on the same records. It may be measured on others.
    objective:  the trainer's loss; default `objectives.PPO()`.
    backend:    "layerwise" (one forward and backward, layers linear in their parameters), "jvp" (forward mode, any
                differentiable policy), "double_backward", "oracle" (a loop, slow). "auto" takes the first that covers
                the policy; `Scores.reason` says why.
    optimizer:  precondition the target's gradient with this optimiser's second moments (Adam, AdamW, RMSprop; SGD: no
                change).
    current:    the training gradient that those moments take in first; None computes the objective's mean gradient over
                the records.
    cross_fit:  score each record against the gradient of the half of the buffer that does not hold it (halves by
                episode, drawn with `seed`), so that no record's own contribution is in its score.
    chunk_size: records evaluated at once, which bounds the memory; default 4096, fewer for large observations.

    Returns `Scores` with values (N,), or (N, M) for `targets.Action(..., each=True)`, and tokens (N, T) where the
    backend gives them. Gradients, training modes and random states are left as they were; dropout is off while scoring.
    Raises `RollsightError` for BatchNorm in training mode, parameters that the chosen backend cannot cover, and scores
    that are not finite.
    """
    target = targets.Return() if target is None else target
    objective = objectives.PPO() if objective is None else objective
    if backend not in ("auto", *_BACKENDS):
        raise RollsightError(f"backend={backend!r} is unknown; give auto, {', '.join(_BACKENDS)}.")
    with untouched(policy.module):
        part, valid = only_valid(records), records.valid_rows
        chunk_size = chunk_size or default_chunk_size(part)
        job = _Job(policy, part, target, objective, optimizer, current, cross_fit, seed, chunk_size)
        values, used, reason = job.run(backend)
        if part is not records:
            full = values.new_zeros((len(records), *values.shape[1:]))
            full[valid] = values
            values = full
    tokens = None
    if records.log_probs.dim() == 2 and values.dim() == 3:
        tokens, values = values, values.sum(1)
        tokens = tokens[..., 0] if tokens.shape[-1] == 1 else None
    if not getattr(target, "each", False):
        values = values.squeeze(-1)
    scores = Scores(
        values,
        tokens,
        records.ids,
        valid,
        target=target.name,
        normalisation=objective.normalisation,
        backend=used,
        reason=reason,
    )
    scores.check_finite()
    return scores


class _Job:
    """One call of `score_records` on valid records only."""

    def __init__(
        self,
        policy: Policy,
        records: Records,
        target: targets.Target,
        objective: objectives.Objective,
        optimizer: torch.optim.Optimizer | None,
        current: Direction | None,
        cross_fit: bool,
        seed: int,
        chunk_size: int,
    ) -> None:
        self.policy, self.records, self.target, self.objective = policy, records, target, objective
        self.optimizer, self.current = optimizer, current
        self.cross_fit, self.seed, self.chunk_size = cross_fit, seed, chunk_size
        self.prepared = objective.prepare(records)
        self.measured = target.measured_on(records)
        self.own_records = self.measured.obs is records.obs
        if not self.own_records:
            self.measured = only_valid(self.measured)
        if cross_fit and not self.own_records:
            raise RollsightError(
                f"cross_fit=True needs a target measured on the training records, but {target.name!r} has its own; "
                f"use one of both."
            )

    def run(self, backend: Backend) -> tuple[Tensor, str, str]:
        """(n, M) or (n, T, M) values, the backend used, and why."""
        if backend != "auto":
            return self.by(backend), backend, "asked for"
        failures = []
        try:
            return self.by("layerwise"), "layerwise", "every trainable parameter is in a layer linear in its parameters"
        except layerwise.NotCovered as failure:
            failures.append(str(failure))
        for name in ("jvp", "double_backward"):
            try:
                return self.by(name), name, failures[0]
            except (RuntimeError, NotImplementedError) as failure:
                failures.append(f"backend {name!r} failed: {str(failure).splitlines()[0]}")
        raise RollsightError(
            " ".join(failures) + " No fast backend covers this policy; backend='oracle' is exact and slow."
        )

    def by(self, backend: str) -> Tensor:
        if backend == "layerwise":
            layers, fits = Layers(self.policy), len(self.prepared) <= self.chunk_size
            if fits and self.own_records and not self.cross_fit and self.optimizer is None:
                return self.shared_pass(layers)[:, None]
            layerwise.check_coverage(layers, self.prepared, self.objective)
        if self.cross_fit:
            first = split_halves(self.records, self.seed)
            columns = self.along(backend, [self.direction_on(~first), self.direction_on(first)])
            return torch.where(first.view(-1, *[1] * (columns.dim() - 2)), columns[..., 0], columns[..., 1])[..., None]
        if not getattr(self.target, "each", False):
            return self.along(backend, [self.direction_on(None)])
        blocks = torch.arange(len(self.measured)).split(_DIRECTIONS_AT_ONCE)
        return torch.cat([self.along(backend, [self.direction_on(m[None]) for m in block]) for block in blocks], -1)

    def along(self, backend: str, directions: list[Direction]) -> Tensor:
        chunks = range(0, len(self.prepared), self.chunk_size)
        parts = (self.prepared.take(slice(start, start + self.chunk_size)) for start in chunks)
        return torch.cat([_BACKENDS[backend](self.policy, part, self.objective, directions) for part in parts])

    def direction_on(self, index: Tensor | None) -> Direction:
        """Gradient of the target's mean over the measured records at `index`, preconditioned where asked for."""
        measured = self.measured if index is None else self.measured.take(index)
        count = max(self.target.count(measured), 1)
        direction = gradient(self.policy, measured, self.target.terms, count, self.chunk_size)
        if self.optimizer is None:
            return direction
        current = self.current_gradient() if self.current is None else self.current
        return precondition(direction, current, self.optimizer, self.policy.trainable())

    def current_gradient(self) -> Direction:
        count = int(self.prepared.valid.sum())
        return gradient(self.policy, self.prepared, self.objective.losses, count, self.chunk_size)

    def shared_pass(self, layers: Layers) -> Tensor:
        """(n,) scores from one forward, for a target and an objective of the same records; from one backward too, where
        both depend on the log-probabilities alone."""
        evaluation, calls = layerwise.forward(layers, self.prepared, self.objective)
        count = max(self.target.count(self.measured), 1)

        def target(e: Evaluation) -> Tensor:
            return self.target.terms(e, self.measured).sum() / count

        def objective(e: Evaluation) -> Tensor:
            return self.objective.losses(e, self.prepared)

        slopes = _log_prob_slopes(evaluation, target, objective)
        if slopes is not None:
            jacobian = layerwise.LogProbJacobian(layers, evaluation, calls, slopes[0])
            return slopes[1] * jacobian.pushforward(jacobian.seed_gradient)
        direction = gradient_of(target(evaluation), layers.parameters, keep_graph=True)
        return layerwise.Backward(layers, calls, objective(evaluation)).along(direction)


def _log_prob_slopes(evaluation: Evaluation, *values: Callable[[Evaluation], Tensor]) -> list[Tensor] | None:
    """(n,) d sum(value) / d log_prob for each value; None where one of them does not depend on the log-probabilities
    alone, or where these are of tokens."""
    if evaluation.log_prob.dim() != 1:
        return None
    leaves = [[None if x is None else x.detach().requires_grad_() for x in evaluation] for _ in values]
    sums = [value(Evaluation(*own)).sum() for value, own in zip(values, leaves, strict=True)]  # type: ignore[arg-type]
    if not all(total.requires_grad for total in sums):
        return None
    grads = iter(torch.autograd.grad(sums, [x for own in leaves for x in own if x is not None], allow_unused=True))
    slopes = []
    for own in leaves:
        slope, *rest = (None if x is None else next(grads) for x in own)
        if slope is None or any(other is not None for other in rest):
            return None
        slopes.append(slope)
    return slopes


def only_valid(records: Records) -> Records:
    """The records with a valid token; the same object where that is all of them."""
    valid = records.valid_rows
    if bool(valid.all()):
        return records
    if not bool(valid.any()):
        raise RollsightError(
            f"None of the {len(records)} records is valid; score a buffer with at least one valid record."
        )
    return records.take(valid.nonzero().flatten())


def default_chunk_size(records: Records) -> int:
    """Rows evaluated at once: about 4096 tokens, fewer where observations are large (images)."""
    entries = [records.obs] if isinstance(records.obs, Tensor) else list(records.obs.values())
    numbers = sum(entry[0].numel() for entry in entries)
    tokens = records.log_probs[0].numel()
    return max(1, min(4096 // tokens, 2**23 // max(numbers, 1)))


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, gradients on; modes and random states afterwards as before."""
    modules = list(module.modules())
    for part in modules:
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (part.training or part.running_mean is None):
            name = next(name for name, one in module.named_modules() if one is part)
            mode = "is in training mode" if part.training else "has no running statistics"
            mend = "call module.eval() before scoring" if part.running_mean is not None else "track_running_stats=True"
            raise RollsightError(
                f"BatchNorm layer {name!r} {mode}, where a record's loss depends on the other records; {mend}."
            )
    training = [part for part in modules if part.training]
    devices = [p.device for p in module.parameters() if p.device.type == "cuda"][:1]
    numpy_state = np.random.get_state(legacy=False)
    with torch.random.fork_rng(devices), torch.enable_grad():
        for part in training:
            part.training = False
        try:
            yield
        finally:
            for part in training:
                part.training = True
            np.random.set_state(numpy_state)
