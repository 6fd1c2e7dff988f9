"""Collection as one compiled function: EnvPool's environments and the policy step each other without Python between."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rollsight.training.compiled.acting import executable
from rollsight.training.compiled.environments import Pool
from rollsight.training.compiled.networks import Network, Parameters, inputs_of, sample


class Rolled(NamedTuple):
    """T steps of E environments, each (T, E, ...) unless another shape is given.

    obs: before each step.
    actions: taken.
    rewards: received.
    terminated: whether the episode ended by itself.
    truncated: whether a time limit ended it.
    after: what each step led to, before the reset where the pool hides it.
    last: (E, ...) the observation that follows.
    """

    obs: Any
    actions: Any
    rewards: Any
    terminated: Any
    truncated: Any
    after: Any
    last: Any


def rollout_in(pool: Pool, network: Network) -> Callable[[Parameters, Any, Any], Rolled] | None:
    """From parameters, the current observations (E, ...) and noise (T, E, D) to T steps; None without EnvPool's XLA."""
    try:
        handle, step = pool.compiled()
    except RuntimeError:  # EnvPool offers its XLA interface on Linux only
        return None
    compiled = jax.jit(partial(_roll, pool, step, network))

    def rollout(parameters: Parameters, obs: Any, noise: Any) -> Rolled:
        nonlocal handle
        handle, columns = compiled(parameters, handle, obs, noise)
        return Rolled(*columns)

    return rollout


def _roll(
    pool: Pool, step: Callable[..., Any], network: Network, parameters: Parameters, handle: Array, obs: Any, noise: Any
) -> tuple[Array, tuple[Array, ...]]:
    """The next handle, and the columns of `Rolled`."""

    def one(carry: tuple[Array, Array], noise: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        handle, obs = carry
        actions = sample(network, parameters, inputs_of(network, obs), noise)
        taken = executable(actions, pool.action_space)
        handle, after, rewards, terminated, truncated = step(handle, taken)
        after = after.astype(obs.dtype)

        def reset(handle: Array) -> tuple[Array, Array]:
            handle, seen, *_ = step(handle, taken)
            return handle, seen.astype(obs.dtype)

        carry = (handle, after)
        if not pool.resets_next_step:
            carry = jax.lax.cond(terminated[0] | truncated[0], reset, lambda handle: (handle, after), handle)
        return carry, (obs, actions, rewards, terminated, truncated, after)

    first = jnp.asarray(obs)
    (handle, last), columns = jax.lax.scan(one, (handle, first), noise)
    return handle, (*columns, last)
