"""Forward mode: the derivative of every record's loss along one direction in one pass, for any differentiable
policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from rollsight.objectives import Objective
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.scoring.directions import Direction, gradient_of


def derivatives(policy: Policy, records: Records, objective: Objective, directions: list[Direction]) -> Tensor:
    """(n, M) or (n, T, M): <grad l_i, v_m>, one forward pass per direction."""
    return torch.stack([_along(policy, records, objective, direction) for direction in directions], -1)


def _along(policy: Policy, records: Records, objective: Objective, direction: Direction) -> Tensor:
    with torch.no_grad(), _forward_mode_kernels(), forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(p.detach(), direction[name]) for name, p in policy.trainable().items()}
        swap = {f"module.{place}": duals[name] for place, name in _places(policy).items()}
        call = Policy(
            _Call(policy),
            lambda call, obs, actions: torch.func.functional_call(call, swap, (obs, actions), tie_weights=False),
        )
        losses = objective.losses(call(records), records)
        primal, tangent = forward_ad.unpack_dual(losses)
        return torch.zeros_like(primal) if tangent is None else tangent.clone()


def _places(policy: Policy) -> dict[str, str]:
    """Every place of a trainable parameter in the module, each once, and the name that `trainable` gives the parameter.

    `functional_call`'s own `tie_weights` takes a submodule with two names (Stable-Baselines3's shared features
    extractor) for two places, and leaves the swapped tensors in the module.
    """
    names = {id(p): name for name, p in policy.trainable().items()}
    return {
        f"{prefix}.{own}" if prefix else own: names[id(p)]
        for prefix, part in policy.module.named_modules()
        for own, p in part._parameters.items()
        if id(p) in names
    }


class _Call(nn.Module):
    """`functional_call` reaches `forward` only; this makes `evaluate` one."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.module = policy.module
        self._evaluate = policy.evaluate

    def forward(self, obs: Any, actions: Any) -> Evaluation:
        return self._evaluate(self.module, obs, actions)


@contextmanager
def _forward_mode_kernels() -> Iterator[None]:
    """mkldnn's RNN, fused attention and attention's inference path have no forward derivative: use the plain ones."""
    mkldnn, mha = torch.backends.mkldnn, torch.backends.mha
    before = mkldnn.enabled, mha.get_fastpath_enabled()
    mkldnn.enabled = False  # type: ignore[assignment]
    mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mkldnn.enabled = before[0]
        mha.set_fastpath_enabled(before[1])


class LogProbJacobian:
    """The Jacobian J of (n,) or (n, T) log-probabilities as a linear operator, for policies that `layerwise` does not
    cover; `seed_gradient` = J^T w."""

    def __init__(self, policy: Policy, records: Records, weights: Tensor) -> None:
        self._policy, self._records = policy, records
        self._parameters = policy.trainable()
        self.evaluation = policy(records)
        self.seed_gradient = self.pullback(weights)

    def pushforward(self, direction: Direction) -> Tensor:
        """(n,) or (n, T): <grad log pi_i, v>."""
        return _along(self._policy, self._records, _LogProb(), direction)

    def pullback(self, weights: Tensor, rows: Tensor | None = None) -> Direction:
        """sum_i u_i grad log pi_i over the records at `rows`, all by default; weights: as the log-probabilities."""
        if rows is not None:
            weights = torch.zeros_like(weights).index_copy(0, rows, weights[rows])
        return gradient_of((weights * self.evaluation.log_prob).sum(), self._parameters, keep_graph=True)


class _LogProb:
    """The log-probability as an objective."""

    normalisation = "raw"

    def prepare(self, records: Records) -> Records:
        return records

    def losses(self, evaluation: Evaluation, records: Records) -> Tensor:
        return evaluation.log_prob
