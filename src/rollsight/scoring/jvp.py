"""Forward mode: the derivative of every record's loss along one direction in one pass, for any policy whose forward
mode and autograd agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from rollsight.objectives import Objective
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.scoring.as_autograd import AsAutograd, check_hooks
from rollsight.scoring.functional import with_parameters
from rollsight.scoring.gradients import Direction, gradient_of
from rollsight.scoring.layers import EVERY, Rows


def derivatives(policy: Policy, records: Records, objective: Objective, directions: list[Direction]) -> Tensor:
    """(n, M) or (n, T, M): <grad l_i, v_m>, one forward pass per direction; `NotCovered` as `AsAutograd` has it."""
    check_hooks(policy)
    return torch.stack([_along(policy, records, objective, direction) for direction in directions], -1)


def _along(policy: Policy, records: Records, objective: Objective, direction: Direction) -> Tensor:
    # Gradients stay enabled, so that `no_grad` within the forward is seen; without parameters that require them there
    # is no graph.
    with _forward_mode_kernels(policy.module), forward_ad.dual_level():
        fixed = {name: p.detach() for name, p in policy.trainable().items()}
        # Parameters that the direction leaves alone (a critic's, mostly) need no tangent, nor does what they lead to.
        moved = {name: direction[name].to(p.dtype) for name, p in fixed.items() if bool(direction[name].any())}
        duals = {name: forward_ad.make_dual(fixed[name], v) for name, v in moved.items()}
        with AsAutograd():
            terms = objective.terms(with_parameters(policy, fixed | duals)(records), _constants(records))
        primal, tangent = forward_ad.unpack_dual(terms)
        return torch.zeros_like(primal) if tangent is None else tangent.clone()


def _constants(records: Records) -> Records:
    """The records with explicit zero tangents: PyTorch combines a tensor that has none with one that has some through
    symbolic zeros, which costs several times the loss itself."""
    names = ("log_probs", "advantages", "returns", "values")
    columns = {name: column for name in names if (column := getattr(records, name)) is not None}
    part = copy(records)
    part.__dict__.update({k: forward_ad.make_dual(c, torch.zeros_like(c)) for k, c in columns.items()})
    return part


@contextmanager
def _forward_mode_kernels(module: nn.Module) -> Iterator[None]:
    """mkldnn's RNN, fused attention and attention's inference path have no forward derivative: use the plain ones.

    Without an RNN mkldnn stays on, because the plain convolutions are several times slower.
    """
    mkldnn, mha = torch.backends.mkldnn, torch.backends.mha
    before = mkldnn.enabled, mha.get_fastpath_enabled()
    if any(isinstance(part, nn.RNNBase) for part in module.modules()):
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
        check_hooks(policy)
        self._policy, self._records = policy, records
        self._parameters = policy.trainable()
        self.evaluation = policy(records)
        self.seed_gradient = self.pullback(weights)

    def pushforward(self, direction: Direction) -> Tensor:
        """(n,) or (n, T): <grad log pi_i, v>."""
        return _along(self._policy, self._records, _LogProb(), direction)

    def pullback(self, weights: Tensor, rows: Rows = EVERY) -> Direction:
        """sum_i u_i grad log pi_i over the records at `rows`; weights: as the log-probabilities."""
        chosen = torch.zeros_like(weights)
        chosen[rows] = weights[rows]
        return gradient_of((chosen * self.evaluation.log_prob).sum(), self._parameters, keep_graph=True)


class _LogProb:
    """The log-probability as an objective."""

    normalisation = "raw"

    def prepare(self, records: Records) -> Records:
        return records

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
        return evaluation.log_prob
