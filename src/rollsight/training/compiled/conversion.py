"""From a Stable-Baselines3 policy and optimiser to the arrays that the compiled engine trains, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from rollsight.errors import RollsightError
from rollsight.training.compiled.networks import Parameters
from rollsight.training.compiled.optimizers import Optimizer, State


def parameters_of(module: nn.Module) -> Parameters:
    """A module's parameters as arrays, copied."""
    return {name: jnp.array(p.detach().numpy()) for name, p in module.named_parameters()}


def tensors_of(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters or an optimiser's state as tensors."""
    return {
        name: tensors_of(value) if isinstance(value, Mapping) else _tensor(value) for name, value in numbers.items()
    }


def arrays_of(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `tensors_of`."""
    return {
        name: arrays_of(value) if isinstance(value, Mapping) else jnp.array(value.numpy())
        for name, value in tensors.items()
    }


def optimizer_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Optimizer, State]:
    """A torch optimiser's counterpart and its state; `RollsightError` for one that has none."""
    (group,) = optimizer.param_groups
    if type(optimizer) is torch.optim.SGD and not any(group[k] for k in ("momentum", "weight_decay", "maximize")):
        return Optimizer("sgd"), {}
    if type(optimizer) is torch.optim.Adam and not any(group[k] for k in ("weight_decay", "amsgrad", "maximize")):
        mine = Optimizer("adam", tuple(group["betas"]), group["eps"])
        if not optimizer.state:
            return mine, mine.init(parameters_of(module))
        states = {name: optimizer.state[p] for name, p in module.named_parameters()}
        moments = {
            key: {name: jnp.array(state[key].numpy()) for name, state in states.items()}
            for key in ("exp_avg", "exp_avg_sq")
        }
        return mine, {"step": jnp.asarray(float(next(iter(states.values()))["step"])), **moments}
    raise RollsightError(
        f"The compiled engine trains with plain SGD and Adam, not {type(optimizer).__name__} with these settings; use "
        "--engine sb3."
    )


def copy_into(module: nn.Module, parameters: Parameters) -> None:
    """Set a module's parameters."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(_tensor(parameters[name]))


def copy_state_into(optimizer: torch.optim.Optimizer, module: nn.Module, state: State, learning_rate: float) -> None:
    """Set an optimiser's state and learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    if not state or not float(state["step"]):
        return
    for name, p in module.named_parameters():
        optimizer.state[p] = {
            "step": torch.tensor(float(state["step"])),
            "exp_avg": _tensor(state["exp_avg"][name]),
            "exp_avg_sq": _tensor(state["exp_avg_sq"][name]),
        }


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array))
