"""The directions that records are scored along: gradients of the target, preconditioned where asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from rollsight.distributed import all_reduced
from rollsight.errors import RollsightError
from rollsight.records import Records
from rollsight.scoring.gradients import Direction, gradient, in_float32
from rollsight.scoring.halves import split_halves
from rollsight.scoring.problem import Problem


@dataclass(frozen=True, eq=False, kw_only=True)
class Options:
    """What is made of the target's gradient.

    optimizer:         whose second moments precondition it; None leaves it as it is.
    training_gradient: what those moments take in first; None computes the objective's mean gradient.
    cross_fit:         score each half of the records along the other half's gradient.
    seed:              draws the halves.
    """

    optimizer: torch.optim.Optimizer | None = None
    training_gradient: Direction | None = None
    cross_fit: bool = False
    seed: int = 0


def directions(problem: Problem, options: Options) -> Iterator[tuple[Tensor | None, Direction]]:
    """Which records are scored along which direction: (n,) booleans, or None for all of them.

    One direction for all; with `cross_fit` one for each half, from the other half; with a target of `each` measured
    record one for each of these, or for each of the groups that the target has.
    """
    objective_gradient = cache(lambda: _gradient_of_objective(problem))

    def of(measured: Records, count: int) -> Direction:
        direction = gradient(problem.policy, measured, problem.target.terms, count, problem.chunk_size)
        return finished(problem, options, direction, objective_gradient)

    def at(rows: Tensor) -> Direction:
        measured = problem.measured.take(rows)
        return of(measured, max(problem.target.count(measured), 1))

    if options.cross_fit:
        first = split_halves(problem.prepared, options.seed)
        yield first, at(~first)
        yield ~first, at(first)
    elif problem.target.each:
        yield from ((None, at(rows)) for rows in _parts(problem))
    else:
        yield None, of(problem.measured, problem.count)


def _parts(problem: Problem) -> list[Tensor]:
    """The rows of the measured records that are explained together."""
    groups: Tensor | None = getattr(problem.target, "groups", None)
    if groups is None:
        return list(torch.arange(len(problem.measured))[:, None])
    return [(groups == group).nonzero().flatten() for group in groups.unique()]


def finished(
    problem: Problem, options: Options, direction: Direction, objective_gradient: Callable[[], Direction]
) -> Direction:
    """A gradient of the target over all processes and parameters, preconditioned where asked for.

    objective_gradient: of the sum of the objective's terms; called where the optimiser's moments take it in.
    """
    computed = options.optimizer is not None and options.training_gradient is None
    summed = [_over_all_parameters(problem, direction)]
    if computed:
        mean = {name: g / problem.tokens for name, g in objective_gradient().items()}
        summed.append(_over_all_parameters(problem, mean))
    if problem.group is not None:
        summed = all_reduced(summed, problem.group)
    if options.optimizer is None:
        return summed[0]
    training = summed[1] if computed else options.training_gradient or {}
    return precondition(summed[0], training, options.optimizer, problem.policy.trainable())


def _gradient_of_objective(problem: Problem) -> Direction:
    return gradient(problem.policy, problem.prepared, problem.objective.terms, 1, problem.chunk_size)


def _over_all_parameters(problem: Problem, direction: Direction) -> Direction:
    """Zeros where a pass did not reach a parameter."""
    parameters = problem.policy.trainable()
    return {
        name: direction[name] if name in direction else in_float32(torch.zeros_like(p))
        for name, p in parameters.items()
    }


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
