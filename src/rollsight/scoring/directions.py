"""Directions in parameter space: the gradient of a target, and its preconditioning by an optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

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


def precondition(
    direction: Direction,
    training_gradient: Direction,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
) -> Direction:
    """`direction / (sqrt(v_hat) + eps)` with the optimiser's second moments: see docs/definitions.md, Preconditioned
    scores.

    training_gradient: of the objective over the full buffer, which v_hat takes in first. Before the optimiser's first
    step v_hat is that gradient's square alone. Parameters whose second moment is zero get weight 0.
    Adam and AdamW (with amsgrad) and RMSprop; SGD leaves the direction as it is. Others raise `RollsightError`.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in parameters.items() if id(p) not in groups and bool(direction[name].any())]
    if missing:
        raise RollsightError(
            f"optimizer=: it does not hold the parameter(s) {', '.join(missing[:5])}; give the optimiser that trains "
            f"this policy."
        )
    if isinstance(optimizer, torch.optim.SGD):
        return direction
    result = {}
    for name, parameter in parameters.items():
        if id(parameter) not in groups:
            result[name] = direction[name]
            continue
        group, state = groups[id(parameter)], optimizer.state.get(parameter, {})
        second = _second_moment(optimizer, group, state, training_gradient[name] ** 2)
        root = (second + group["eps"]).sqrt() if _eps_inside(optimizer) else second.sqrt() + group["eps"]
        result[name] = torch.where(second > 0, direction[name] / root, 0.0)
    return result


def _second_moment(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], state: Mapping[str, Tensor], square: Tensor
) -> Tensor:
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        if "exp_avg_sq" not in state:
            return square
        beta, step = float(group["betas"][1]), float(state["step"]) + 1
        moment = beta * state["exp_avg_sq"] + (1 - beta) * square
        if "max_exp_avg_sq" in state:
            moment = torch.maximum(moment, state["max_exp_avg_sq"])
        return moment / (1 - math.pow(beta, step))
    if isinstance(optimizer, torch.optim.RMSprop) or _eps_inside(optimizer):
        if group.get("centered"):
            raise RollsightError(
                "optimizer=: RMSprop with centered=True is not covered; use centered=False or optimizer=None."
            )
        if "square_avg" not in state:
            return square
        alpha = float(group["alpha"])
        return alpha * state["square_avg"] + (1 - alpha) * square
    raise RollsightError(
        f"optimizer=: {type(optimizer).__name__} is not covered; give Adam, AdamW, RMSprop or SGD, or optimizer=None."
    )


def _eps_inside(optimizer: torch.optim.Optimizer) -> bool:
    # Stable-Baselines3's RMSpropTFLike, known by name because the lower floors import no host: eps inside the root.
    return type(optimizer).__name__ == "RMSpropTFLike"
