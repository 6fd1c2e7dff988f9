"""The trust line: how far a round's scores can be believed, logged beside every selection (protocol section 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rollsight import objectives
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.scoring import jvp, layerwise
from rollsight.scoring.directions import Direction, norm
from rollsight.scoring.halves import split_halves
from rollsight.scoring.score import default_chunk_size, only_valid, untouched


@dataclass(frozen=True)
class TrustLine:
    """What a round's scores rest on.

    split_half:          Spearman correlation of the scores against each half's gradient (halves by episode). Near 0:
                         the ranking is
                         made by the noise of one half.
    split_half_permuted: the same with advantages permuted over records: what the in-sample trap alone gives.
    gradient_ratio:      norm of the mean training gradient after the selection, over before. Far above 1: the
                         selection lengthens
                         the step, and part of its gain is a larger learning rate. 1 without a selection.
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

    Buffers that do not fit in one chunk of `score_records` are represented by a random part of that size.
    """
    objective = objectives.PPO() if objective is None else objective
    with untouched(policy.module):
        only_valid(records)  # complains where nothing is
        rows = records.valid_rows.nonzero().flatten()
        rng = np.random.default_rng(seed)
        limit = default_chunk_size(records)
        if len(rows) > limit:
            rows = rows[torch.from_numpy(np.sort(rng.permutation(len(rows))[:limit])).to(rows.device)]
        part = records.take(rows)
        jacobian = _jacobian(policy, part, objective)
        first = split_halves(part, seed)
        permuted = part.with_advantages(_permuted(part, rng))
        ratio = 1.0
        if weights is not None and not bool((weights[rows] == 1).all()):
            ratio = _gradient_ratio(jacobian, part, objective, weights[rows].to(part.log_probs))
        target_gradient = jacobian.pullback(_return_weights(part))
        return TrustLine(
            _split_half(jacobian, part, objective, first, target_gradient),
            _split_half(jacobian, permuted, objective, first, jacobian.pullback(_return_weights(permuted))),
            ratio,
            norm(target_gradient),
        )


_Jacobian = layerwise.LogProbJacobian | jvp.LogProbJacobian


def _jacobian(policy: Policy, records: Records, objective: objectives.Objective) -> _Jacobian:
    if records.log_probs.dim() == 1:
        try:
            layerwise.check_coverage(policy, records, objective)
            jacobian = layerwise.LogProbJacobian(policy, records, _return_weights(records))
            jacobian.pushforward(jacobian.seed_gradient)  # its own check
            return jacobian
        except layerwise.NotCovered:
            pass
    return jvp.LogProbJacobian(policy, records)


def _return_weights(records: Records) -> Tensor:
    weights = objectives.per_token(records.advantages, records.log_probs) * records.valid
    return weights / records.valid.sum()


def _slopes(jacobian: _Jacobian, records: Records, objective: objectives.Objective) -> Tensor:
    """d l_i / d log pi_i."""
    evaluation = Evaluation(*(None if x is None else x.detach() for x in jacobian.evaluation))
    log_prob = evaluation.log_prob.clone().requires_grad_()
    losses = objective.losses(evaluation._replace(log_prob=log_prob), objective.prepare(records))
    return torch.autograd.grad(losses.sum(), log_prob)[0]


def _split_half(
    jacobian: _Jacobian, records: Records, objective: objectives.Objective, first: Tensor, whole: Direction
) -> float:
    """Spearman of c_i <g_i, v_A> with c_i <g_i, v_B>. v_B's products follow from the whole's and v_A's by linearity."""
    mask = first.view(-1, *[1] * (records.valid.dim() - 1)) & records.valid
    if not 0 < int(mask.sum()) < int(records.valid.sum()):
        return float("nan")
    along_whole = jacobian.pushforward(whole)
    along_first = jacobian.pushforward(jacobian.pullback(_return_weights(records) * mask))
    slopes = _slopes(jacobian, records, objective)
    valid = records.valid
    return spearman((slopes * along_first)[valid], (slopes * (along_whole - along_first))[valid])


def _gradient_ratio(jacobian: _Jacobian, records: Records, objective: objectives.Objective, weights: Tensor) -> float:
    slopes = _slopes(jacobian, records, objective)
    weights = weights.view(*weights.shape, *[1] * (slopes.dim() - weights.dim())) * records.valid
    if not bool(weights.any()):
        return float("nan")
    before = norm(jacobian.pullback(slopes)) / int(records.valid.sum())
    after = norm(jacobian.pullback(slopes * weights)) / float(weights.sum())
    return after / before if before else float("nan")


def _permuted(records: Records, rng: np.random.Generator) -> Tensor:
    mask = records.valid if records.advantages.dim() == records.valid.dim() else records.valid_rows
    values = records.advantages[mask]
    permuted = records.advantages.clone()
    permuted[mask] = values[torch.from_numpy(rng.permutation(len(values))).to(values.device)]
    return permuted


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation with average ranks for ties; nan where one side is constant."""
    ranks = [_ranks(x.double().cpu().numpy()) for x in (a, b)]
    if any(r.std() == 0 for r in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: np.ndarray[tuple[int], np.dtype[np.float64]] = (last - (counts - 1) / 2)[position]
    return ranks
