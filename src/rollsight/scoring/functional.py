"""A policy as a function of its parameters, for forward mode and `torch.func`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rollsight.policy import Evaluation, Policy


def with_parameters(policy: Policy, parameters: Mapping[str, Tensor]) -> Policy:
    """The policy with these tensors in place of its trainable parameters of these names; the module keeps its own."""
    swap = {f"module.{place}": parameters[name] for place, name in _places(policy).items() if name in parameters}
    return Policy(
        _Call(policy),
        lambda call, obs, actions: torch.func.functional_call(call, swap, (obs, actions), tie_weights=False),
    )


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
