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
from rollsight.scoring.directions import Direction, gradient, precondition
from rollsight.scoring.halves import split_halves
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
    cross_fit: bool = False,
    seed: int = 0,
    chunk_size: int | None = None,
) -> Scores:
    """Score every record: `s_i = <grad l_i(theta), grad f(theta)>` at the module's present parameters.

    l_i is record i's own term of the maximised `objective` (unscaled), f the `target` (a mean), as in Hu et al. 2025,
    section 3:
    a positive score means that the record pushes the target up.

    target:    what is explained; default `targets.Return()` on the same records. A target may be measured on other
               records.
    objective: the trainer's loss; default `objectives.PPO()`.
    backend:   "layerwise" (one forward and backward, layers linear in their parameters), "jvp" (forward mode, any
               differentiable policy), "double_backward", "oracle" (a loop, slow); "auto" takes the first that covers the policy and
               `Scores.reason` says why.
    optimizer: precondition the target's gradient with this optimiser's second moments (Adam, AdamW, RMSprop; SGD: no
    change).
    cross_fit: score each record against the gradient of the half of the buffer (halves by episode, drawn with `seed`)
    that does not
               hold it, so that no record's own contribution is in its score.
    chunk_size: records evaluated at once, which bounds the memory; default 4096, fewer for large observations.

    Returns `Scores` with values (N,), or (N, M) for `targets.Action(..., each=True)`, and tokens (N, T) where the
    backend gives them.
    Gradients, training modes and random states are left as they were; dropout is off while scoring. Raises
    `RollsightError` for
    BatchNorm in training mode, parameters that the chosen backend cannot cover, and scores that are not finite.
    """
    target = targets.Return() if target is None else target
    objective = objectives.PPO() if objective is None else objective
    if backend not in ("auto", *_BACKENDS):
        raise RollsightError(f"backend={backend!r} is unknown; give auto, {', '.join(_BACKENDS)}.")
    with untouched(policy.module):
        part, valid = only_valid(records), records.valid_rows
        job = _Job(policy, part, target, objective, optimizer, cross_fit, seed, chunk_size or default_chunk_size(part))
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
        cross_fit: bool,
        seed: int,
        chunk_size: int,
    ) -> None:
        self.policy, self.records, self.target, self.objective = policy, records, target, objective
        self.optimizer, self.cross_fit, self.seed, self.chunk_size = optimizer, cross_fit, seed, chunk_size
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
            layerwise.check_coverage(self.policy, self.prepared, self.objective)
            shared = self.shared_pass()
            if shared is not None:
                return shared[:, None]
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
        return precondition(direction, self.current_gradient(), self.optimizer, self.policy.trainable())

    def current_gradient(self) -> Direction:
        count = int(self.prepared.valid.sum())
        return gradient(self.policy, self.prepared, self.objective.losses, count, self.chunk_size)

    def shared_pass(self) -> Tensor | None:
        """(n,) scores from one forward and backward, where target and objective are functions of the same records'
        log-probabilities; None where they are not, or where the records do not fit in one chunk."""
        records = self.prepared
        if (
            not self.own_records
            or self.cross_fit
            or self.optimizer is not None
            or records.log_probs.dim() != 1
            or len(records) > self.chunk_size
        ):
            return None
        count = self.target.count(self.measured)
        weights = _log_prob_weights(lambda e: self.target.terms(e, self.measured).sum() / count, records)
        if weights is None:
            return None
        if not bool(weights.any()):
            return weights
        jacobian = layerwise.LogProbJacobian(self.policy, records, weights)
        slopes = _log_prob_weights(lambda e: self.objective.losses(e, records).sum(), records, at=jacobian.evaluation)
        if slopes is None:
            return None
        return slopes * jacobian.pushforward(jacobian.seed_gradient)


def _log_prob_weights(
    value: Callable[[Evaluation], Tensor], records: Records, at: Evaluation | None = None
) -> Tensor | None:
    """d value / d log_prob, (n,), or None where the value also depends on entropy or value estimates.

    Without `at` the value must be linear in the log-probabilities; a target that is not gives None.
    """
    log_prob = (records.log_probs if at is None else at.log_prob).detach().clone().requires_grad_()
    # Probes: a value that reads entropy or value estimates shows it by a gradient that is not None.
    entropy, estimate = torch.zeros_like(log_prob).requires_grad_(), torch.zeros_like(log_prob).requires_grad_()
    result = value(Evaluation(log_prob, entropy, estimate))
    weights, *others = torch.autograd.grad(
        result, (log_prob, entropy, estimate), allow_unused=True, create_graph=at is None
    )
    if weights is None or any(other is not None for other in others):
        return None
    if at is None and weights.requires_grad:
        return None
    return weights.detach()


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
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (part.training or part.running_mean is None):
            mode = "is in training mode" if part.training else "has no running statistics"
            mend = "call module.eval() before scoring" if part.running_mean is not None else "track_running_stats=True"
            raise RollsightError(
                f"BatchNorm layer {name!r} {mode}, where a record's loss depends on the other records; {mend}."
            )
    training = [part for part in module.modules() if part.training]
    devices = [p.device for p in module.parameters() if p.device.type == "cuda"][:1]
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices), torch.enable_grad():
        for part in training:
            part.training = False
        try:
            yield
        finally:
            for part in training:
                part.training = True
            np.random.set_state(numpy_state)
