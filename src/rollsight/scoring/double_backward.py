"""Double backward: differentiate <grad sum_i w_i l_i, v> with respect to the weights w.

Exact for whatever can be differentiated twice; it serves where forward mode is missing (an mkldnn LSTM, say).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rollsight.objectives import Objective
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.scoring.directions import Direction


def derivatives(policy: Policy, records: Records, objective: Objective, directions: list[Direction]) -> Tensor:
    """(n, M) or (n, T, M): <grad l_i, v_m>."""
    parameters = policy.trainable()
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
        losses = objective.losses(policy(records), records)
        weights = torch.ones_like(losses).requires_grad_()
        grads = torch.autograd.grad(
            (weights * losses).sum(), list(parameters.values()), create_graph=True, allow_unused=True
        )
        columns = []
        for direction in directions:
            used = [(g * direction[name]).sum() for name, g in zip(parameters, grads, strict=True) if g is not None]
            (column,) = torch.autograd.grad(torch.stack(used).sum(), weights, retain_graph=True)
            columns.append(column.detach())
    return torch.stack(columns, -1)
