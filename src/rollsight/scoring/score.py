"""`score_records`: the inner product of each record's loss gradient with the gradient of a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from rollsight import objectives, targets
from rollsight.distributed import Group
from rollsight.errors import RollsightError
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.scoring import double_backward, jvp, layerwise, oracle
from rollsight.scoring.covering import first_that_covers
from rollsight.scoring.directions import Options, directions, finished
from rollsight.scoring.forward import Forward
from rollsight.scoring.gradients import Direction
from rollsight.scoring.layers import Layers
from rollsight.scoring.modes import scoring_mode
from rollsight.scoring.one_pass import one_pass, scores_without_self
from rollsight.scoring.problem import Problem, default_chunk_size, only_valid
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
    leave_self_out: score each record against the target minus the record's own part of it (the target's mean keeps its
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
    options = Options(optimizer=optimizer, training_gradient=training_gradient, cross_fit=cross_fit, seed=seed)
    with scoring_mode(policy.module):
        valid = records.valid_rows
        part = only_valid(records) if group is None else records.take(valid.nonzero().flatten())
        chunk_size = chunk_size or default_chunk_size(records)
        read = on_policy and not getattr(objective, "on_policy", False)
        noting = Compared(objective) if read else None
        make = Problem.local if group is None else partial(Problem.across, group)
        problem = make(policy, part, target, noting or objective, chunk_size=chunk_size)
        _check(problem, options)
        if leave_self_out:
            values, used, reason = _without_self(problem, options, backend)
        else:
            whole = forward if part is records else None  # else it has rows that are not scored
            values, used, reason = _by_first(problem, options, backend, tokens, whole)
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


def score(problem: Problem, directions: list[Direction], backend: str) -> Tensor:
    """(n, M), or (n, T, M) where the backend has a score for each token: <grad l_i, v_m>, chunk by chunk."""
    policy, objective = problem.policy, problem.objective
    if not len(problem.prepared):  # a process without a valid record
        shape = problem.prepared.log_probs.shape[: 1 if backend == "layerwise" else 2]
        return problem.prepared.log_probs.new_zeros(*shape, len(directions))
    chunks = []
    for start in range(0, len(problem.prepared), problem.chunk_size):
        part = problem.prepared.take(slice(start, start + problem.chunk_size))
        chunks.append(_BACKENDS[backend](policy, part, objective, directions))
        if backend in ("jvp", "double_backward"):
            oracle.check_first(backend, policy, part, objective, directions, chunks[-1])
    return torch.cat(chunks)


def _check(problem: Problem, options: Options) -> None:
    """`RollsightError` for options that do not go with the target or the group."""
    if options.cross_fit and not problem.same_records:
        raise RollsightError(
            f"cross_fit=True needs a target measured on the training records, but {problem.target.name!r} has its own; "
            f"use one of both."
        )
    if problem.group is not None and (options.cross_fit or problem.target.each):
        raise RollsightError("group= gives every record one direction; leave out cross_fit=True and each=True.")


def _by_first(
    problem: Problem, options: Options, backend: Backend, tokens: bool, forward: Forward | None
) -> tuple[Tensor, str, str]:
    """(n, M) or (n, T, M) values, the backend used (the first that covers the policy, for "auto"), and why."""
    single = not options.cross_fit and not problem.target.each
    known: list[tuple[Tensor | None, Direction]] = []  # of a single direction: processes add it up once

    def by(name: str) -> Tensor:
        if name == "layerwise" and len(problem.prepared):
            layers = Layers(problem.policy)
            layerwise.check_coverage(layers, problem.prepared, problem.objective)
            passed = one_pass(layers, problem, forward) if single and problem.same_records else None
            if passed is not None:
                known.append((None, finished(problem, options, passed.target_gradient, passed.objective_gradient)))
                return passed.along(known[0][1])[:, None]
        if single and not known:
            known.extend(directions(problem, options))
        return _assembled(problem, known or directions(problem, options), name)

    if backend != "auto":
        return by(backend), backend, "asked for"
    names = ["layerwise", "jvp", "double_backward"][1 if tokens else 0 :]
    values, used, why = first_that_covers({name: partial(by, name) for name in names})
    if tokens:
        return values, used, why or "the first that scores every token"
    return values, used, why or "every trainable parameter is in a layer linear in its parameters"


def _assembled(problem: Problem, along: Iterable[tuple[Tensor | None, Direction]], backend: str) -> Tensor:
    """(n, M) or (n, T, M): a column for each direction of all records; one column for those of the two halves."""
    rows: list[Tensor | None] = []
    columns: list[Tensor] = []
    remaining = iter(along)
    while block := list(islice(remaining, _DIRECTIONS_AT_ONCE)):
        columns.append(score(problem, [direction for _, direction in block], backend))
        rows += [of for of, _ in block]
    values = torch.cat(columns, -1)
    if rows[0] is None:
        return values
    first = rows[0].view(-1, *[1] * (values.dim() - 2))
    return torch.where(first, values[..., 0], values[..., 1])[..., None]


def _without_self(problem: Problem, options: Options, backend: str) -> tuple[Tensor, str, str]:
    """(n, 1) values without the records' own parts, the backend used, and why."""
    unlike = {
        "cross_fit=True": options.cross_fit,
        "optimizer=": options.optimizer is not None,
        "group=": problem.group is not None,
        f"backend={backend!r}": backend not in ("auto", "layerwise"),
        f"the target {problem.target.name!r}, which is measured on records of its own": not problem.same_records,
    }
    if excluded := next((name for name, given in unlike.items() if given), None):
        raise RollsightError(f"leave_self_out=True does not go with {excluded}; use one of both.")
    layers = Layers(problem.policy)
    layerwise.check_coverage(layers, problem.prepared, problem.objective)
    values = scores_without_self(layers, problem)
    if values is None:
        raise RollsightError(
            f"leave_self_out=True needs every record's own gradient, which these {len(problem.prepared)} records have "
            "where all trainable layers are nn.Linear, as a LoRA adapter's are, few enough for the memory, and the "
            f"target {problem.target.name!r} depends on the log-probabilities that the loss has; use cross_fit=True."
        )
    return values[:, None], "layerwise", "every record's own gradient"
