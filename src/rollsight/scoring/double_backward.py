"""Double backward: differentiate <grad sum_i w_i l_i, v> with respect to the weights w.

Exact for whatever can be differentiated twice; it serves where forward mode is missing (an mkldnn LSTM, say) or would
not follow autograd.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rollsight.objectives import Objective
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.scoring.covering import NotCovered
from rollsight.scoring.gradients import Direction, check_attached, gradient_of, in_float32
from rollsight.scoring.layers import EVERY, Rows


def derivatives(policy: Policy, records: Records, objective: Objective, directions: list[Direction]) -> Tensor:
    """(n, M) or (n, T, M): <grad l_i, v_m>."""
    with _twice_differentiable():
        pull = _Pull(policy, objective.terms(policy(records), records))
        return torch.stack([pull.along(direction) for direction in directions], -1)


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
        yield


class _Pull:
    """g(w) = grad sum_i w_i y_i at w = 1, as a function of w."""

    def __init__(self, policy: Policy, y: Tensor) -> None:
        check_attached(y)
        self._weights = torch.ones_like(y).requires_grad_()
        parameters = policy.trainable()
        grads = torch.autograd.grad(
            (self._weights * y).sum(), list(parameters.values()), create_graph=True, allow_unused=True
        )
        self._grads = {name: in_float32(g) for name, g in zip(parameters, grads, strict=True) if g is not None}
        half = any(g is not None and g.dtype in (torch.bfloat16, torch.float16) for g in grads)
        self._tolerance = 5e-2 if half else 1e-9 if y.dtype == torch.float64 else 1e-4

    def along(self, direction: Direction) -> Tensor:
        """As the weights: <grad y_i, v>. The sum over i must be <g(1), v>, which a backward that hides part of itself
        from autograd, or is not proportional to what it is given, does not keep."""
        whole = torch.stack([(g * direction[name]).sum() for name, g in self._grads.items()]).sum()
        if not whole.requires_grad:
            raise _not_twice()
        (column,) = torch.autograd.grad(whole, self._weights, retain_graph=True)
        parts, expected = in_float32(column), float(whole.detach())
        if abs(float(parts.sum()) - expected) > self._tolerance * (float(parts.abs().sum()) + abs(expected)):
            raise _not_twice()
        return column


def _not_twice() -> NotCovered:
    return NotCovered(
        "double_backward",
        "this policy: a custom autograd.Function or a gradient hook has a backward that cannot be differentiated",
    )


class LogProbJacobian:
    """The Jacobian J of (n,) or (n, T) log-probabilities as a linear operator, for policies that neither `layerwise`
    nor `jvp` covers; `seed_gradient` = J^T w."""

    def __init__(self, policy: Policy, records: Records, weights: Tensor) -> None:
        with _twice_differentiable():
            self.evaluation = policy(records)
            self._pull = _Pull(policy, self.evaluation.log_prob)
        self._parameters = policy.trainable()
        self.seed_gradient = self.pullback(weights)

    def pushforward(self, direction: Direction) -> Tensor:
        """(n,) or (n, T): <grad log pi_i, v>."""
        return self._pull.along(direction)

    def pullback(self, weights: Tensor, rows: Rows = EVERY) -> Direction:
        """sum_i u_i grad log pi_i over the records at `rows`; weights: as the log-probabilities."""
        chosen = torch.zeros_like(weights)
        chosen[rows] = weights[rows]
        return gradient_of((chosen * self.evaluation.log_prob).sum(), self._parameters, keep_graph=True)
