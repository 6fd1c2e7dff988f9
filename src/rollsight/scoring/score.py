"""`score_records`: the inner product of each record's loss gradient with the gradient of a target."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from rollsight import objectives, targets
from rollsight.errors import RollsightError
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.scoring import double_backward, jvp, layerwise, oracle
from rollsight.scoring.covering import first_that_covers
from rollsight.scoring.directions import Direction, gradient, in_float32, precondition
from rollsight.scoring.forward import Forward
from rollsight.scoring.halves import split_halves
from rollsight.scoring.layers import Layers
from rollsight.scoring.modes import untouched
from rollsight.scoring.one_pass import Pair, along_others, one_pass
from rollsight.scoring.parallel import Group, all_reduced, measured_across, prepared_across
from rollsight.scoring.recorded import Compared
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
    training_gradient: Direction | None = None,
    cross_fit: bool = False,
    leave_self_out: bool = False,
    seed: int = 0,
    chunk_size: int | None = None,
    forward: Forward | None = None,
    group: Group | None = None,
    on_policy: bool = False,
    tokens: bool = False,
) -> Scores:
    """Score every record: `s_i = <grad l_i(theta), grad f(theta)>` at the module's present parameters.

    l_i is record i's own term of the maximised `objective` (unscaled), f the `target` (a mean), as in Hu et al. 2025,
    section 3: a positive score means that the record pushes the target up.

    target:     what is explained; default `targets.Return()` on the same records. It may be measured on others.
    objective:  the trainer's loss; default `objectives.PPO()`.
    backend:    "layerwise" (one forward and backward, layers linear in their parameters), "jvp" (forward mode, any
                differentiable policy), "double_backward", "oracle" (a loop, slow). "auto" takes the first that covers
                the policy; `Scores.reason` says why those before it do not. All give autograd's gradient: a layer or
                function whose backward is not its forward's derivative is scored as it is trained.
    optimizer:  precondition the target's gradient with this optimiser's second moments (Adam, AdamW, RMSprop; SGD: no
                change).
    training_gradient: added to those moments before they are used, as the optimiser's next step would add it; None
                computes the objective's mean gradient over the records.
    cross_fit:  score each record against the gradient of the half of the buffer that does not hold it (halves by
                episode, drawn with `seed`), so that no record's own contribution is in its score.
    leave_self_out: score each record against the target less the record's own part of it (the target's mean keeps its
                denominator). For policies whose trainable layers are `nn.Linear`, a LoRA adapter's for example.
    chunk_size: records evaluated at once, which bounds the memory; default 4096, fewer for large observations, about
                1024 tokens of sequences.
    forward:    a `scoring.Forward` of these records, made when the trainer computed their log-probabilities. The
                layerwise backend then needs a backward only, where target and objective are of the same records and,
                for a forward in several parts, the trainable layers are an adapter's; otherwise it evaluates anew.
    group:      a `torch.distributed` group, each of whose ranks makes this call with its own records of one buffer and
                gets their scores: normalisation, direction and second moments are those of all ranks' records. A
                target's own records are its rank's too; a rank may have no valid record.
    on_policy:  the module is still the policy that collected the records: warn (once for a module) where more than 1
                record in 10 has a log-probability that is 0.2 nats off the recorded one (sequences: a token's mean).
                Objectives with an `on_policy` of their own do not read the recorded ones, and nothing is compared.
    tokens:     of (N, T) records, score every token: "auto" leaves out layerwise, which gives sequences' scores only.

    Returns `Scores` with values (N,), or (N, M) for `targets.Action(..., each=True)`, and tokens (N, T) where the
    backend gives them. Gradients, training modes and random states are left as they were; dropout is off while scoring.
    Raises `RollsightError` for layers that make a record's gradient depend on other records (BatchNorm in training
    mode, embeddings with scale_grad_by_freq), `covering.NotCovered` for parameters that the chosen backend cannot
    cover, `covering.NoBackend` where "auto" finds none, and `Diverged` for scores that are not finite.
    """
    target = targets.Return() if target is None else targets.checked(target)
    objective = objectives.PPO() if objective is None else objective
    if backend not in ("auto", *_BACKENDS):
        raise RollsightError(f"backend={backend!r} is unknown; give auto, {', '.join(_BACKENDS)}.")
    with untouched(policy.module):
        valid = records.valid_rows
        part = only_valid(records) if group is None else records.take(valid.nonzero().flatten())
        chunk_size = chunk_size or default_chunk_size(records)
        if part is not records:
            forward = None  # it has rows that are not scored
        read = on_policy and not getattr(objective, "on_policy", False)
        noting = Compared(objective) if read else None
        loss = noting or objective
        job = _Job(
            policy, part, target, loss, optimizer, training_gradient, cross_fit, seed, chunk_size, forward, group
        )
        values, used, reason = job.run_without_self(backend) if leave_self_out else job.run(backend, tokens)
        if noting is not None:
            noting.warn(policy.module)
        if part is not records:
            full = values.new_zeros((len(records), *values.shape[1:]))
            full[valid] = values
            values = full
    by_token = None
    if records.log_probs.dim() == 2 and values.dim() == 3:
        by_token = values[..., 0] if values.shape[-1] == 1 else None
        values = values.sum(1)
    if not target.each:
        values = values.squeeze(-1)
    scores = Scores(
        values,
        by_token,
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
        training_gradient: Direction | None,
        cross_fit: bool,
        seed: int,
        chunk_size: int,
        forward: Forward | None,
        group: Group | None,
    ) -> None:
        self.policy, self.records, self.target, self.objective = policy, records, target, objective
        self.optimizer, self.training_gradient = optimizer, training_gradient
        self.cross_fit, self.seed, self.chunk_size = cross_fit, seed, chunk_size
        self.forward, self.group = forward, group
        self.whole: Direction | None = None  # the one direction, once it is known: its all-reduce happens once
        if group is None:
            self.prepared, self.measured = objective.prepare(records), target.measured_on(records)
        else:
            self.prepared, self.tokens = prepared_across(objective, records, group)
            self.measured, self.count = measured_across(target, records, group)
        self.own_records = self.measured.obs is records.obs
        if group is None:
            self.measured = self.measured if self.own_records else only_valid(self.measured)
            self.tokens, self.count = int(self.prepared.valid.sum()), target.count(self.measured)
        self.count = max(self.count, 1)
        if cross_fit and not self.own_records:
            raise RollsightError(
                f"cross_fit=True needs a target measured on the training records, but {target.name!r} has its own; "
                f"use one of both."
            )
        if group is not None and (cross_fit or target.each):
            raise RollsightError("group= gives every record one direction; leave out cross_fit=True and each=True.")

    def run(self, backend: Backend, tokens: bool) -> tuple[Tensor, str, str]:
        """(n, M) or (n, T, M) values, the backend used, and why."""
        if backend != "auto":
            return self.by(backend), backend, "asked for"
        names = ["layerwise", "jvp", "double_backward"][1 if tokens else 0 :]
        values, used, why = first_that_covers({name: partial(self.by, name) for name in names})
        if tokens:
            return values, used, why or "the first that scores every token"
        return values, used, why or "every trainable parameter is in a layer linear in its parameters"

    def run_without_self(self, backend: str) -> tuple[Tensor, str, str]:
        """(n, 1) values without the records' own parts, the backend used, and why."""
        unlike = {
            "cross_fit=True": self.cross_fit,
            "optimizer=": self.optimizer is not None,
            "group=": self.group is not None,
            f"backend={backend!r}": backend not in ("auto", "layerwise"),
            f"the target {self.target.name!r}, which is measured on records of its own": not self.own_records,
        }
        if found := next((name for name, given in unlike.items() if given), None):
            raise RollsightError(f"leave_self_out=True does not go with {found}; use one of both.")
        layers = Layers(self.policy)
        layerwise.check_coverage(layers, self.prepared, self.objective)
        pair = Pair(self.target, self.measured, self.count, self.objective, self.prepared)
        values = along_others(layers, pair, self.chunk_size)
        if values is None:
            raise RollsightError(
                f"leave_self_out=True needs every record's own gradient, which these {len(self.prepared)} records have "
                "where all trainable layers are nn.Linear, as a LoRA adapter's are, few enough for the memory, and the "
                f"target {self.target.name!r} depends on the log-probabilities that the loss has; use cross_fit=True."
            )
        return values[:, None], "layerwise", "every record's own gradient"

    def by(self, backend: str) -> Tensor:
        if backend == "layerwise" and len(self.prepared):
            layers = Layers(self.policy)
            layerwise.check_coverage(layers, self.prepared, self.objective)
            if self.own_records and not self.cross_fit:
                pair = Pair(self.target, self.measured, self.count, self.objective, self.prepared)
                found = one_pass(layers, pair, self.chunk_size, self.forward)
                if found is not None:
                    self.whole = self.finished(found.target_gradient, found.objective_gradient)
                    return found.along(self.whole)[:, None]
        if self.cross_fit:
            first = split_halves(self.records, self.seed)
            columns = self.along(backend, [self.direction_on(~first), self.direction_on(first)])
            return torch.where(first.view(-1, *[1] * (columns.dim() - 2)), columns[..., 0], columns[..., 1])[..., None]
        if not self.target.each:
            if self.whole is None:
                self.whole = self.direction_on(None)
            return self.along(backend, [self.whole])
        blocks = torch.arange(len(self.measured)).split(_DIRECTIONS_AT_ONCE)
        return torch.cat([self.along(backend, [self.direction_on(m[None]) for m in block]) for block in blocks], -1)

    def along(self, backend: str, directions: list[Direction]) -> Tensor:
        if not len(self.prepared):  # a rank without a valid record
            shape = self.prepared.log_probs.shape[: 1 if backend == "layerwise" else 2]
            return self.prepared.log_probs.new_zeros(*shape, len(directions))
        columns = []
        for start in range(0, len(self.prepared), self.chunk_size):
            part = self.prepared.take(slice(start, start + self.chunk_size))
            columns.append(_BACKENDS[backend](self.policy, part, self.objective, directions))
            if backend in ("jvp", "double_backward"):
                oracle.check_first(backend, self.policy, part, self.objective, directions, columns[-1])
        return torch.cat(columns)

    def direction_on(self, index: Tensor | None) -> Direction:
        """Gradient of the target's mean over the measured records at `index`, preconditioned where asked for."""
        measured = self.measured if index is None else self.measured.take(index)
        count = self.count if index is None else max(self.target.count(measured), 1)
        direction = gradient(self.policy, measured, self.target.terms, count, self.chunk_size)
        return self.finished(direction, self.objective_gradient)

    def objective_gradient(self) -> Direction:
        return gradient(self.policy, self.prepared, self.objective.terms, 1, self.chunk_size)

    def finished(self, direction: Direction, objective_gradient: Callable[[], Direction]) -> Direction:
        """The direction over all ranks and parameters, preconditioned where asked for; `objective_gradient`: of the
        summed terms."""
        direction = self.over_all_parameters(direction)
        taken_in = self.optimizer is not None and self.training_gradient is None
        if taken_in:
            training = self.over_all_parameters({k: g / self.tokens for k, g in objective_gradient().items()})
        else:
            training = self.training_gradient or {}
        if self.group is not None:
            direction, *rest = all_reduced([direction, training] if taken_in else [direction], self.group)
            training = rest[0] if taken_in else training
        if self.optimizer is None:
            return direction
        return precondition(direction, training, self.optimizer, self.policy.trainable())

    def over_all_parameters(self, direction: Direction) -> Direction:
        """Zeros where a pass did not reach a parameter."""
        parameters = self.policy.trainable()
        return {
            name: direction[name] if name in direction else in_float32(torch.zeros_like(p))
            for name, p in parameters.items()
        }


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
    """Rows evaluated at once: 4096, fewer where observations are large (images); of sequences about 1024 tokens,
    prompts included."""
    entries = [records.obs] if isinstance(records.obs, Tensor) else list(records.obs.values())
    numbers = sum(entry[0].numel() for entry in entries)
    rows = 4096
    if records.log_probs.dim() == 2:
        words = [entry.shape[1] for entry in entries if entry.dim() == 2 and not entry.is_floating_point()]
        rows = 1024 // max(records.log_probs.shape[1], *words, 1)
    return max(1, min(rows, 2**23 // max(numbers, 1)))
