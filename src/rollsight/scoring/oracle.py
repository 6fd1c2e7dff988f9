"""The oracle: one `autograd.grad` per record. Slow and obviously right; every other backend is tested against it."""

from __future__ import annotations

import torch
from torch import Tensor

from rollsight.objectives import Objective
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.scoring.directions import Direction


def derivatives(policy: Policy, records: Records, objective: Objective, directions: list[Direction]) -> Tensor:
    """(n, M) or (n, T, M): <grad l_i, v_m>, record by record (token by token)."""
    parameters = policy.trainable()
    rows = []
    for i in range(len(records)):
        record = records.take(slice(i, i + 1))
        terms = objective.losses(policy(record), record)[0]
        row = []
        for term in terms.reshape(-1):
            grads = torch.autograd.grad(term, list(parameters.values()), retain_graph=True, allow_unused=True)
            gradient = {name: g for name, g in zip(parameters, grads, strict=True) if g is not None}
            row.append(torch.stack([_inner(gradient, direction, term) for direction in directions]))
        rows.append(torch.stack(row).reshape(*terms.shape, len(directions)))
    return torch.stack(rows)


def _inner(gradient: Direction, direction: Direction, like: Tensor) -> Tensor:
    total = torch.zeros((), dtype=like.dtype, device=like.device)
    for name, grad in gradient.items():
        total = total + (grad * direction[name]).sum()
    return total
