"""The oracle: one `autograd.grad` per record. Slow and obviously right; every other backend is tested against it."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rollsight.objectives import Objective
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.scoring.covering import NotCovered
from rollsight.scoring.gradients import Direction, gradient_of, inner, norm

_agreed: WeakKeyDictionary[nn.Module, set[tuple[str, ...]]] = WeakKeyDictionary()


def derivatives(policy: Policy, records: Records, objective: Objective, directions: list[Direction]) -> Tensor:
    """(n, M) or (n, T, M): <grad l_i, v_m>, record by record (token by token)."""
    parameters = policy.trainable()
    rows = []
    for i in range(len(records)):
        record = records.take(slice(i, i + 1))
        terms = objective.terms(policy(record), record)[0]
        row = []
        for term in terms.reshape(-1):
            grads = torch.autograd.grad(term, list(parameters.values()), retain_graph=True, allow_unused=True)
            gradient = {name: g for name, g in zip(parameters, grads, strict=True) if g is not None}
            row.append(torch.stack([_inner(gradient, direction, term) for direction in directions]))
        rows.append(torch.stack(row).reshape(*terms.shape, len(directions)))
    return torch.stack(rows)


def check_first(
    backend: str, policy: Policy, records: Records, objective: Objective, directions: list[Direction], found: Tensor
) -> None:
    """`NotCovered` unless a backend's derivatives of the records begin with the first record's own, by autograd.

    A backend is looked at once for the same trained parameters of a module: this finds what is always in the forward.
    Only in full precision: half precision may put the one record on the other side of a clip than the batch has it.
    """
    parameters = policy.trainable()
    seen, looked_at = _agreed.setdefault(policy.module, set()), (backend, *parameters)
    if looked_at in seen or any(p.dtype in (torch.bfloat16, torch.float16) for p in policy.module.parameters()):
        return
    record = records.take(slice(0, 1))
    terms = objective.terms(policy(record), record)
    own = gradient_of(terms.sum(), parameters)
    for k, direction in enumerate(directions):
        value, expected = float(found[0, ..., k].sum()), inner(own, direction)
        if abs(value - expected) > 1e-4 * norm(own) * norm(direction):
            raise NotCovered(
                backend,
                f"this policy: the first record gets {value:.6g} where autograd's gradient gives {expected:.6g}, so "
                "its backward is not the derivative of its forward",
            )
    if norm(own):
        seen.add(looked_at)


def _inner(gradient: Direction, direction: Direction, like: Tensor) -> Tensor:
    total = torch.zeros((), dtype=like.dtype, device=like.device)
    for name, grad in gradient.items():
        total = total + ((grad.to_dense() if grad.is_sparse else grad) * direction[name]).sum()
    return total
