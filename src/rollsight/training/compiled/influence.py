"""Scores of the records against `f_return`, compiled: the derivative of every record's loss along a direction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from rollsight.training.compiled.batch import Batch
from rollsight.training.compiled.networks import Network, Parameters, evaluate, inputs_of
from rollsight.training.compiled.optimizers import Optimizer, State
from rollsight.training.compiled.ppo import normalized, surrogate

_Function: TypeAlias = Callable[[Parameters], Array]


@partial(jax.jit, static_argnums=(0, 1))
def scores(network: Network, normalize: bool, parameters: Parameters, batch: Batch, clip_range: float) -> Array:
    """(N,) `<grad l_i, grad f_return>` at these parameters: the derivative of every record's clipped policy loss along
    the gradient of `f_return` on the same buffer (Hu et al. 2025, section 3). Invalid records score 0.

    normalize: l_i takes advantages normalised over the buffer; f_return takes them raw.
    """
    log_prob = _log_prob(network, batch)
    losses = _losses(log_prob, normalize, batch, clip_range)
    return _along(losses, parameters, jax.grad(_f_return(log_prob, batch, batch.valid))(parameters))


@partial(jax.jit, static_argnums=(0, 1))
def against_halves(
    network: Network, normalize: bool, parameters: Parameters, batch: Batch, clip_range: float, first: Array
) -> Array:
    """(2, N) `scores` against the gradient of each half of the buffer. first: (N,) booleans, its first half."""
    log_prob = _log_prob(network, batch)
    losses = _losses(log_prob, normalize, batch, clip_range)
    directions = [jax.grad(_f_return(log_prob, batch, batch.valid & half))(parameters) for half in (first, ~first)]
    return jnp.stack([_along(losses, parameters, direction) for direction in directions])


@partial(jax.jit, static_argnums=(0, 1, 2))
def preconditioned(
    network: Network,
    optimizer: Optimizer,
    normalize: bool,
    parameters: Parameters,
    state: State,
    batch: Batch,
    clip_range: float,
) -> Array:
    """(N,) `scores` along the direction divided by Adam's root second moment, which takes in the gradient of the whole
    buffer's policy loss first (docs/definitions.md, Preconditioned scores). SGD has none: the plain scores."""
    log_prob = _log_prob(network, batch)
    losses = _losses(log_prob, normalize, batch, clip_range)
    direction = jax.grad(_f_return(log_prob, batch, batch.valid))(parameters)
    if optimizer.kind == "adam":
        current = jax.grad(lambda at: losses(at).sum() / batch.valid.sum())(parameters)
        root = optimizer.root_second_moment(current, state)
        direction = {n: jnp.where(root[n] > 0, d / (root[n] + optimizer.eps), 0.0) for n, d in direction.items()}
    return _along(losses, parameters, direction)


@partial(jax.jit, static_argnums=(0, 1))
def without_own_episode(
    network: Network, normalize: bool, parameters: Parameters, batch: Batch, clip_range: float, episode: Array
) -> Array:
    """(N,) `scores` less what the record's own episode contributed to the direction. episode: (N,) numbers below N.

    Holds one gradient for each record: N x parameters floats.
    """
    gradients = _gradients(network, parameters, batch)
    taken = normalized(batch.advantages, batch.valid) if normalize else batch.advantages
    share = jnp.where(batch.valid, batch.advantages, 0.0) / batch.valid.sum()
    of_episode = jax.ops.segment_sum(share[:, None] * gradients, episode, num_segments=len(episode))
    own = jnp.where(batch.valid, taken, 0.0) * (gradients * of_episode[episode]).sum(1)
    values: Array = scores(network, normalize, parameters, batch, clip_range) - own
    return values


def _gradients(network: Network, parameters: Parameters, batch: Batch) -> Array:
    """(N, P) of log pi(a_i given s_i)."""
    inputs = inputs_of(network, batch.obs)

    def one(at: Parameters, x: Array, action: Array) -> Array:
        return evaluate(network, at, x[None], action[None]).log_prob[0]

    gradients = jax.vmap(jax.grad(one), in_axes=(None, 0, 0))(parameters, inputs, jnp.asarray(batch.actions))
    return jnp.concatenate([g.reshape(len(inputs), -1) for g in jax.tree.leaves(gradients)], axis=1)


def _log_prob(network: Network, batch: Batch) -> _Function:
    inputs = inputs_of(network, batch.obs)
    return lambda at: jnp.where(batch.valid, evaluate(network, at, inputs, batch.actions).log_prob, 0.0)


def _f_return(log_prob: _Function, batch: Batch, among: Any) -> _Function:
    """The mean of log pi * A over the rows of `among` (N,)."""
    return lambda at: jnp.asarray(jnp.where(among, log_prob(at) * batch.advantages, 0.0).sum() / among.sum())


def _losses(log_prob: _Function, normalize: bool, batch: Batch, clip_range: Any) -> _Function:
    """(N,) the records' terms of the maximised objective."""
    taken = normalized(batch.advantages, batch.valid) if normalize else batch.advantages

    def losses(at: Parameters) -> Array:
        ratio = jnp.exp(log_prob(at) - jnp.where(batch.valid, batch.log_probs, 0.0))
        return jnp.where(batch.valid, surrogate(ratio, taken, clip_range), 0.0)

    return losses


def _along(losses: _Function, parameters: Parameters, direction: Parameters) -> Array:
    values: Array
    _, values = jax.jvp(losses, (parameters,), (direction,))
    return values
