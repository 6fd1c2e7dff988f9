"""One pass where the target and the objective are of the same records: the target's gradient and the scores from one
forward, and from one backward where both pull each record's log-probabilities the same way (two otherwise)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from rollsight.objectives import Objective
from rollsight.policy import Evaluation
from rollsight.records import Records
from rollsight.scoring import layerwise
from rollsight.scoring.forward import Chunk, Evaluated, Forward
from rollsight.scoring.gradients import Direction, gradient_of, in_float32
from rollsight.scoring.layers import Call, Layers
from rollsight.scoring.problem import Problem

MOST_GRADIENTS = 2**29  # numbers that the records' own gradients may have: 2 GiB in float32


class OnePass(Protocol):
    """What is known after the pass."""

    target_gradient: Direction

    def objective_gradient(self) -> Direction:
        """Of the sum of the objective's terms."""
        ...

    def along(self, direction: Direction) -> Tensor:
        """(n,) <grad l_i, v>; may raise `NotCovered`."""
        ...


def one_pass(layers: Layers, problem: Problem, forward: Forward | None) -> OnePass | None:
    """The pass, or None where it would take more than its chunks' memory: then records of several chunks are covered
    only as sequences whose own gradients fit (those of an adapter do). forward: of these records, if there is one."""
    chunks = _chunks(layers, problem, forward)
    if len(chunks) == 1:
        return _chunk_pass(layers, problem, chunks[0][1]())
    if problem.prepared.log_probs.dim() == 2 and _own_gradients_fit(layers, problem):
        return _Materialised(layers, problem, chunks)
    return None


def scores_without_self(layers: Layers, problem: Problem) -> Tensor | None:
    """(n,) <grad l_i, grad f> less <grad l_i, grad f_i>, f_i being record i's own part of the target; None where the
    records' own gradients do not fit, or target and objective pull a record's log-probabilities different ways."""
    if not _own_gradients_fit(layers, problem):
        return None
    gradients = _Materialised(layers, problem, _chunks(layers, problem, None))
    own = gradients.own_parts()
    return None if own is None else gradients.along(gradients.target_gradient) - own


def _own_gradients_fit(layers: Layers, problem: Problem) -> bool:
    size = len(problem.prepared) * sum(p.numel() for p in layers.parameters.values())
    return size <= MOST_GRADIENTS and all(issubclass(kind, nn.Linear) for kind in layers.kinds)


def _chunks(layers: Layers, problem: Problem, forward: Forward | None) -> list[Chunk]:
    """The records' rows, and what evaluates each part."""
    if forward is not None:
        return [
            (rows, partial(_checked, layers, problem.prepared.take(rows), problem.objective, evaluated))
            for rows, evaluated in forward.chunks(layers.policy, len(problem.prepared))
        ]
    starts = range(0, len(problem.prepared), problem.chunk_size)
    return [
        (rows, partial(layerwise.forward, layers, problem.prepared.take(rows), problem.objective))
        for rows in (slice(start, start + problem.chunk_size) for start in starts)
    ]


def _checked(layers: Layers, part: Records, objective: Objective, evaluated: Callable[[], Evaluated]) -> Evaluated:
    evaluation, calls = evaluated()
    layerwise.check_calls(layers, calls, part, objective)
    return evaluation, calls


def _chunk_pass(layers: Layers, problem: Problem, evaluated: Evaluated) -> OnePass:
    evaluation, calls = evaluated
    shared = _shared_log_prob_weights(layers, evaluation, problem)
    if shared is None:
        return _TwoBackwards(layers, evaluation, calls, problem)
    return _OneBackward(layers, evaluation, calls, *shared)


class _OneBackward:
    """The target is sum_i a_i y_i and the objective sum_i b_i y_i, to first order: one backward from y."""

    def __init__(
        self, layers: Layers, evaluation: Evaluation, calls: list[Call], y: Tensor, a: Tensor, b: Tensor
    ) -> None:
        self._jacobian = layerwise.LogProbJacobian(layers, evaluation._replace(log_prob=y), calls, a)
        self._b = b
        self.target_gradient = self._jacobian.seed_gradient

    def objective_gradient(self) -> Direction:
        return self._jacobian.pullback(self._b)

    def along(self, direction: Direction) -> Tensor:
        return self._b * self._jacobian.pushforward(direction)


class _TwoBackwards:
    """Any target and objective of the same forward."""

    def __init__(self, layers: Layers, evaluation: Evaluation, calls: list[Call], problem: Problem) -> None:
        self.target_gradient = gradient_of(problem.target_value(evaluation), layers.parameters, keep_graph=True)
        self._backward = layerwise.Backward(layers, calls, problem.objective_terms(evaluation))
        self.along = self._backward.along

    def objective_gradient(self) -> Direction:
        total = self._backward.total
        return {name: total.get(name, torch.zeros_like(g)) for name, g in self.target_gradient.items()}


class _Materialised:
    """Every record's own gradient (of y as above, or of its loss), chunk by chunk: G, (n, P). The target's gradient is
    G^T a, the scores b * (G v)."""

    def __init__(self, layers: Layers, problem: Problem, chunks: list[Chunk]) -> None:
        n = len(problem.prepared)
        self._parameters = layers.parameters
        self._rows: dict[str, Tensor] = {}
        self.target_gradient = {name: in_float32(torch.zeros_like(p)) for name, p in layers.parameters.items()}
        self._a: list[Tensor] | None = []  # None once a chunk has none
        self._b = torch.cat([self._take_in(layers, problem.take(rows), rows, n, given) for rows, given in chunks])

    def _take_in(self, layers: Layers, part: Problem, rows: slice, n: int, evaluate: Callable[[], Evaluated]) -> Tensor:
        """A chunk's gradients; its b. (A method, so that one chunk's graph is gone before the next.)"""
        evaluation, calls = evaluate()
        shared = _shared_log_prob_weights(layers, evaluation, part)
        if shared:
            y, a, b = shared
            self._fill(rows, n, layerwise.Backward(layers, calls, y))
            gradient = self._pullback(a, rows)
            if self._a is not None:
                self._a.append(a.detach())
        else:
            self._a = None
            gradient = gradient_of(part.target_value(evaluation), layers.parameters, keep_graph=True)
            terms = part.objective_terms(evaluation)
            self._fill(rows, n, layerwise.Backward(layers, calls, terms))
            b = terms.new_ones(len(terms))
        for name, g in gradient.items():
            self.target_gradient[name] += g
        return b.detach()

    def _fill(self, rows: slice, n: int, backward: layerwise.Backward) -> None:
        for name, gradients in backward.record_gradients().items():
            if name not in self._rows:
                self._rows[name] = gradients.new_zeros(n, gradients.shape[1])
            self._rows[name][rows] = gradients

    def _pullback(self, weights: Tensor, rows: slice) -> Direction:
        """sum_i w_i G_i over `rows`."""
        found = {name: (weights.to(G) @ G[rows]).view(self._parameters[name].shape) for name, G in self._rows.items()}
        return {name: found.get(name, torch.zeros_like(g)) for name, g in self.target_gradient.items()}

    def objective_gradient(self) -> Direction:
        return self._pullback(self._b, slice(None))

    def own_parts(self) -> Tensor | None:
        """(n,) <grad l_i, grad f_i> = a_i b_i |G_i|^2."""
        if self._a is None:
            return None
        return torch.cat(self._a) * self._b * torch.stack([G.square().sum(1) for G in self._rows.values()]).sum(0)

    def along(self, direction: Direction) -> Tensor:
        products = [G @ direction[name].reshape(-1).to(G) for name, G in self._rows.items()]
        return self._b * torch.stack(products).sum(0)


def _shared_log_prob_weights(
    layers: Layers, evaluation: Evaluation, problem: Problem
) -> tuple[Tensor, Tensor, Tensor] | None:
    """y, a and b, each (n,), such that the target's slope in the log-probabilities is that of sum_i a_i y_i and the
    objective's that of sum_i b_i y_i; None where there are none.

    A plain record's y is its log-probability; a sequence's is a weighted sum over its tokens, the same for target and
    loss where one's slopes are a multiple of the other's (one advantage for the sequence, on the policy, say).
    """
    slopes = log_prob_slopes(evaluation, problem.target_value, problem.objective_terms)
    if slopes is None:
        return None
    w, c = slopes
    if w.dim() == 1:
        return evaluation.log_prob, w, c
    pivot = w.abs().argmax(1, keepdim=True)
    largest = w.gather(1, pivot)
    pulled = (largest != 0).squeeze(1)
    factor = torch.where(largest != 0, c.gather(1, pivot) / largest, 0.0)
    eps = max(torch.finfo(p.dtype).eps for p in layers.policy.module.parameters() if p.is_floating_point())
    deviation = (c - factor * w).abs().amax(1)  # what rounding adds to ratios of 1 is not another slope
    if bool((pulled & (deviation > min(100 * eps, 1e-2) * c.abs().amax(1))).any()):
        return None
    seeds = torch.where(pulled[:, None], w, c)
    scale = seeds.abs().amax(1)
    y = (seeds / scale.clamp_min(torch.finfo(scale.dtype).tiny)[:, None] * evaluation.log_prob).sum(1)
    return y, scale * pulled, scale * torch.where(pulled, factor.squeeze(1), 1.0)


def log_prob_slopes(evaluation: Evaluation, *values: Callable[[Evaluation], Tensor]) -> list[Tensor] | None:
    """d sum(value) / d log_prob for each value; None where one of them does not depend on the log-probabilities
    alone."""
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
