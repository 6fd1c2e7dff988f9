"""SGD, Adam, AdamW and RMSprop on M stacked models, each with its own state and number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Stacked: TypeAlias = dict[str, Tensor]  # name -> (M, ...)


class NotStackable(Exception):
    """These models must be trained one after another; the message says why."""


class StackedOptimizer:
    """The optimiser of one model, continued for M copies of it.

    The state starts as the given optimiser's. Raises `NotStackable` for kinds and options that are not covered.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], models: int) -> None:
        self._kind = _kind_of(optimizer)
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self._groups: dict[str, dict[str, Any]] = {}
        self._state: dict[str, Stacked] = {}
        for name, p in parameters.items():
            if id(p) not in groups:
                continue  # the host does not train it
            group = self._groups[name] = groups[id(p)]
            _check_options(group, optimizer)
            self._state[name] = {
                key: value.detach().expand(models, *value.shape).clone()
                for key, value in self._initial(optimizer, p).items()
            }

    def _initial(self, optimizer: torch.optim.Optimizer, p: nn.Parameter) -> dict[str, Tensor]:
        state = optimizer.state.get(p, {})
        if self._kind == "adam":
            zeros = torch.zeros_like(p)
            return {
                "exp_avg": state.get("exp_avg", zeros),
                "exp_avg_sq": state.get("exp_avg_sq", zeros),
                "step": torch.tensor(float(state.get("step", 0)), dtype=torch.float64),
            }
        if self._kind == "sgd":
            return {}
        first = torch.ones_like(p) if self._kind == "rmsprop_tf" else torch.zeros_like(p)
        return {"square_avg": state.get("square_avg", first)}

    def step(self, parameters: Stacked, gradients: Stacked, going: Tensor) -> Stacked:
        """The parameters after one step of the models that are `going` (M,); the others, and their state, stay."""
        everyone = bool(going.all())
        result = dict(parameters)
        for name, group in self._groups.items():
            p, state = parameters[name], self._state[name]
            new, new_state = self._rule(p, gradients[name], state, group)
            if not everyone:
                new = torch.where(_like(going, new), new, p)
                new_state = {k: torch.where(_like(going, v), v, state[k]) for k, v in new_state.items()}
            result[name], self._state[name] = new, new_state
        return result

    def _rule(self, p: Tensor, g: Tensor, state: Stacked, group: Mapping[str, Any]) -> tuple[Tensor, Stacked]:
        rate, decay = group["lr"], group.get("weight_decay", 0.0)
        if decay and group.get("decoupled_weight_decay", False):
            p = p * (1 - rate * decay)
        elif decay:
            g = g + decay * p
        if self._kind == "sgd":
            return p - rate * g, {}
        if self._kind == "adam":
            one, two = group["betas"]
            step = state["step"] + 1
            mean = one * state["exp_avg"] + (1 - one) * g
            square = two * state["exp_avg_sq"] + (1 - two) * g * g
            size, root = rate / (1 - one**step), (1 - two**step).sqrt()  # in float64, as torch's Python floats
            denominator = square.sqrt() / _like(root, g).to(g.dtype) + group["eps"]
            moved = p - _like(size, g).to(g.dtype) * mean / denominator
            return moved, {"exp_avg": mean, "exp_avg_sq": square, "step": step}
        square = group["alpha"] * state["square_avg"] + (1 - group["alpha"]) * g * g
        inside = self._kind == "rmsprop_tf"
        denominator = (square + group["eps"]).sqrt() if inside else square.sqrt() + group["eps"]
        return p - rate * g / denominator, {"square_avg": square}


def _kind_of(optimizer: torch.optim.Optimizer) -> str:
    name = type(optimizer).__name__
    kinds = {"SGD": "sgd", "Adam": "adam", "AdamW": "adam", "RMSprop": "rmsprop", "RMSpropTFLike": "rmsprop_tf"}
    if name not in kinds:
        raise NotStackable(f"the optimiser is {name}, and only {', '.join(kinds)} are written for stacked models")
    return kinds[name]


def _check_options(group: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    # Each changes the update rule; none is usual in policy optimisation, so they are left to torch itself.
    for option in ("momentum", "nesterov", "amsgrad", "centered", "maximize"):
        if group.get(option):
            raise NotStackable(f"the optimiser {type(optimizer).__name__} has {option}={group[option]}")


def _like(column: Tensor, like: Tensor) -> Tensor:
    """(M,) as (M, 1, ..., 1), to broadcast against `like`."""
    return column.view(-1, *[1] * (like.dim() - 1))
