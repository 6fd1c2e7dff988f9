"""The trust line: how far a round's scores can be believed, logged with every selection.

See docs/definitions.md, The in-sample trap and the trust line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from rollsight import objectives
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.scoring import double_backward, jvp, layerwise
from rollsight.scoring.covering import first_that_covers
from rollsight.scoring.gradients import Direction, norm
from rollsight.scoring.halves import split_halves
from rollsight.scoring.layers import Layers
from rollsight.scoring.modes import scoring_mode
from rollsight.scoring.problem import default_chunk_size, only_valid
from rollsight.scoring.ranks import spearman
from rollsight.streams import stream


@dataclass(frozen=True)
class TrustLine:
    """What a round's scores rest on.

    split_half:          Spearman correlation of the scores against each half's gradient (halves by episode). Near 0:
                         the ranking is made by the noise of one half.
    split_half_permuted: the same with advantages permuted over records: what the in-sample trap alone gives.
    gradient_ratio:      norm of the mean training gradient after the selection, over before. Far above 1: the
                         selection lengthens the step, and part of its gain is a larger learning rate. 1 without a
                         selection.
    target_gradient_norm: norm of the gradient of `f_return`.
    """

    split_half: float
    split_half_permuted: float
    gradient_ratio: float
    target_gradient_norm: float


def trust_line(
    policy: Policy,
    records: Records,
    objective: objectives.Objective | None = None,
    weights: Tensor | None = None,
    *,
    seed: int = 0,
) -> TrustLine:
    """The trust line of `f_return` scores on these records, with the selection's weights, (N,) or (N, T), where there
    is one.

    Buffers that do not fit in one chunk of `score_records` are represented by a random part of that size. Of the
    backends it takes the first that covers the policy, as `score_records` does.

    Raises:
        RollsightError: no record is valid, or a BatchNorm layer is in training mode.
        NoBackend: no backend covers the policy (a `RollsightError`). A trainer logs no trust line then, and goes on.
    """
    objective = objectives.PPO() if objective is None else objective
    with scoring_mode(policy.module):
        rng = stream(seed)
        part, weights = _at_most_a_chunk(records, weights, rng)
        in_first = split_halves(part, seed)
        # One half after the other, so that each is a slice. Normalisation comes before: its chunks go by the buffer.
        order = torch.cat([in_first.nonzero(), (~in_first).nonzero()]).flatten()
        size = int(in_first.sum())
        halves = slice(0, size), slice(size, len(part))
        permuted = part.with_advantages(_permuted(part, rng))
        sorted_part = part.take(order)

        def in_order(version: Records) -> Records:
            return sorted_part.with_advantages(version.advantages[order])

        weights = None if weights is None else weights[order]
        prepared = [in_order(objective.prepare(version)) for version in (part, permuted)]
        pull, permuted_pull = (_return_weights(in_order(version)) for version in (part, permuted))
        part = sorted_part

        def line(jacobian: _Jacobian) -> TrustLine:
            slopes, permuted_slopes = _slopes(jacobian.evaluation, objective, prepared)
            whole = jacobian.seed_gradient
            first = jacobian.pullback(pull, halves[0])
            second = {name: g - first[name] for name, g in whole.items()}
            by_chance = [jacobian.pullback(permuted_pull, half) for half in halves]
            return TrustLine(
                _agreement(jacobian, slopes, part.valid, (first, second)),
                _agreement(jacobian, permuted_slopes, part.valid, by_chance),
                1.0 if weights is None else _gradient_ratio(jacobian, slopes, part.valid, weights),
                norm(whole),
            )

        def by_layers() -> TrustLine:
            layers = Layers(policy)
            evaluation, calls = layerwise.forward(layers, part, objective)
            return line(layerwise.LogProbJacobian(layers, evaluation, calls, pull))

        ways = {
            "layerwise": by_layers,
            "jvp": lambda: line(jvp.LogProbJacobian(policy, part, pull)),
            "double_backward": lambda: line(double_backward.LogProbJacobian(policy, part, pull)),
        }
        if part.log_probs.dim() != 1:
            del ways["layerwise"]
        return first_that_covers(ways)[0]


_Jacobian: TypeAlias = layerwise.LogProbJacobian | jvp.LogProbJacobian | double_backward.LogProbJacobian


def _at_most_a_chunk(
    records: Records, weights: Tensor | None, rng: np.random.Generator
) -> tuple[Records, Tensor | None]:
    """The valid records and their weights; of more than a chunk of them a random part of that size, in their order."""
    part = only_valid(records)
    weights = None if weights is None else weights[records.valid_rows].to(part.log_probs)
    size = default_chunk_size(records)
    if len(part) <= size:
        return part, weights
    rows = torch.from_numpy(np.sort(rng.permutation(len(part))[:size])).to(part.log_probs.device)
    return part.take(rows), None if weights is None else weights[rows]


def _return_weights(records: Records) -> Tensor:
    weights = objectives.per_token(records.advantages, records.log_probs) * records.valid
    return weights / records.valid.sum()


def _slopes(evaluation: Evaluation, objective: objectives.Objective, prepared: Sequence[Records]) -> tuple[Tensor, ...]:
    """d l_i / d log pi_i, for each version of the records."""
    leaves = [evaluation.log_prob.detach().requires_grad_() for _ in prepared]
    others = [None if x is None else x.detach() for x in evaluation[1:]]
    terms = [objective.terms(Evaluation(leaf, *others), r) for leaf, r in zip(leaves, prepared, strict=True)]
    return torch.autograd.grad([each.sum() for each in terms], leaves)


def _agreement(jacobian: _Jacobian, slopes: Tensor, valid: Tensor, halves: Sequence[Direction]) -> float:
    """Spearman of c_i <g_i, v_A> with c_i <g_i, v_B>; nan for fewer than 3 records."""
    one, other = ((slopes * jacobian.pushforward(half))[valid].cpu() for half in halves)
    return spearman(one, other)


def _gradient_ratio(jacobian: _Jacobian, slopes: Tensor, valid: Tensor, weights: Tensor) -> float:
    """Norm of the weighted mean gradient over the plain one's."""
    weights = weights.view(*weights.shape, *[1] * (slopes.dim() - weights.dim())) * valid
    if not bool(weights.any()):
        return float("nan")
    missing = valid.to(weights) - weights
    changed = missing.flatten(1).any(1) if missing.dim() > 1 else missing != 0
    if not bool(changed.any()):
        return 1.0
    gradient = jacobian.pullback(slopes)
    lost = jacobian.pullback(slopes * missing, changed.nonzero().flatten())
    before = norm(gradient) / int(valid.sum())
    after = norm({name: g - lost[name] for name, g in gradient.items()}) / float(weights.sum())
    return after / before if before else float("nan")


def _permuted(records: Records, rng: np.random.Generator) -> Tensor:
    mask = records.valid if records.advantages.dim() == records.valid.dim() else records.valid_rows
    values = records.advantages[mask]
    permuted = records.advantages.clone()
    permuted[mask] = values[torch.from_numpy(rng.permutation(len(values))).to(values.device)]
    return permuted
