"""Gradients over a buffer, as directions in parameter space: one tensor for each trainable parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from rollsight.errors import RollsightError
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records

Direction: TypeAlias = dict[str, Tensor]  # by parameter, in float32 at least


def in_float32(x: Tensor) -> Tensor:
    """The same numbers in float32 at least; half precision would lose sums over records. Dense (`sparse=True` makes
    an embedding's gradient sparse)."""
    x = x.to_dense() if x.is_sparse else x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def gradient(
    policy: Policy, records: Records, term: Callable[[Evaluation, Records], Tensor], count: int, chunk_size: int
) -> Direction:
    """Gradient of sum(term) / count over the records, in chunks; zero for parameters the term does not reach."""
    parameters = policy.trainable()
    total: Direction = {} if len(records) else {name: in_float32(torch.zeros_like(p)) for name, p in parameters.items()}
    for start in range(0, len(records), chunk_size):
        part = records.take(slice(start, start + chunk_size))
        grads = gradient_of(term(policy(part), part).sum() / count, parameters)
        total = {name: total[name] + g for name, g in grads.items()} if total else grads
    return total


def gradient_of(value: Tensor, parameters: Mapping[str, nn.Parameter], keep_graph: bool = False) -> Direction:
    """Gradient of a value computed from the policy; zero for parameters that it does not depend on."""
    check_attached(value)
    grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, retain_graph=keep_graph)
    return {
        name: in_float32(torch.zeros_like(p) if g is None else g)
        for (name, p), g in zip(parameters.items(), grads, strict=True)
    }


def check_attached(value: Tensor) -> None:
    """`RollsightError` where a value computed from the policy has lost its graph."""
    if not value.requires_grad:
        raise RollsightError(
            "The policy's log-probabilities do not depend on its trainable parameters; "
            "`evaluate` must compute them with gradients enabled and without detaching."
        )


def inner(a: Mapping[str, Tensor | None], b: Mapping[str, Tensor]) -> float:
    """<a, b> over all parameters; None counts as zero."""
    return sum(float(torch.dot(g.reshape(-1), b[name].reshape(-1))) for name, g in a.items() if g is not None)


def norm(direction: Direction) -> float:
    """Euclidean length."""
    return math.sqrt(inner(direction, direction))
