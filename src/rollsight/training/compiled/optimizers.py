"""SGD and Adam as torch computes them, on dictionaries of arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp

from rollsight.training.compiled.networks import Parameters

State: TypeAlias = dict[str, Any]
"""Adam's: `step` (), and `exp_avg` and `exp_avg_sq`, each name -> array; SGD's is empty."""


@dataclass(frozen=True)
class Optimizer:
    """Which optimiser.

    kind: "sgd" or "adam".
    betas: Adam's decay of its first and second moments; higher averages over more steps.
    eps: Adam's, by default that of Stable-Baselines3's PPO.
    """

    kind: Literal["sgd", "adam"]
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-5

    def init(self, parameters: Parameters) -> State:
        """The state before the first step."""
        if self.kind == "sgd":
            return {}
        moments = [{name: jnp.zeros_like(p) for name, p in parameters.items()} for _ in range(2)]
        return {"step": jnp.zeros(()), "exp_avg": moments[0], "exp_avg_sq": moments[1]}

    def apply(
        self, parameters: Parameters, gradients: Parameters, state: State, learning_rate: Any
    ) -> tuple[Parameters, State]:
        """One step: the new parameters and the new state."""
        if self.kind == "sgd":
            return {name: p - learning_rate * gradients[name] for name, p in parameters.items()}, state
        beta1, beta2 = self.betas
        step = state["step"] + 1
        # 1 - beta^step would lose four digits in float32 at the first steps.
        correction1, correction2 = -jnp.expm1(step * math.log(beta1)), -jnp.expm1(step * math.log(beta2))
        first = {name: m + (1 - beta1) * (gradients[name] - m) for name, m in state["exp_avg"].items()}
        second = self._second_moment(gradients, state)
        size, root = learning_rate / correction1, jnp.sqrt(correction2)
        moved = {
            name: p - size * first[name] / (jnp.sqrt(second[name]) / root + self.eps) for name, p in parameters.items()
        }
        return moved, {"step": step, "exp_avg": first, "exp_avg_sq": second}

    def root_second_moment(self, gradients: Parameters, state: State) -> Parameters:
        """Adam's root of the bias-corrected second moment once it has taken in these gradients."""
        correction = -jnp.expm1((state["step"] + 1) * math.log(self.betas[1]))
        return {name: jnp.sqrt(m / correction) for name, m in self._second_moment(gradients, state).items()}

    def _second_moment(self, gradients: Parameters, state: State) -> Parameters:
        beta = self.betas[1]
        return {name: beta * m + (1 - beta) * gradients[name] ** 2 for name, m in state["exp_avg_sq"].items()}
