"""PPO's update as one compiled function."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from rollsight.errors import RollsightError
from rollsight.training.compiled.batch import Batch, Minibatches
from rollsight.training.compiled.networks import Evaluation, Network, Parameters, evaluate, inputs_of
from rollsight.training.compiled.optimizers import Optimizer, State
from rollsight.update import UpdateRule


@dataclass(frozen=True)
class Loss:
    """What the compiled update is compiled for; everything that schedules change is in `Rates`.

    normalize_advantage: whether each minibatch's advantages are normalised.
    clip_values: whether the value function's change is clipped.
    ent_coef: weight of the entropy bonus; higher explores more.
    vf_coef: weight of the value loss.
    """

    normalize_advantage: bool
    clip_values: bool
    ent_coef: float
    vf_coef: float


class Rates(NamedTuple):
    """Numbers of one round.

    learning_rate: of the optimiser.
    clip_range: of the probability ratio; higher lets the policy move further.
    clip_range_vf: of the value function's change.
    max_grad_norm: gradients longer than this are cut to it.
    """

    learning_rate: float
    clip_range: float
    clip_range_vf: float
    max_grad_norm: float


MEANS = ("clip_fraction", "policy_gradient_loss", "value_loss", "grad_norm")


class Trained(NamedTuple):
    """After an update.

    parameters: of policy and value function.
    state: of the optimiser.
    approx_kl: mean over the last epoch's minibatches, as Stable-Baselines3 logs it.
    means: over all minibatches, by name: `clip_fraction`, `policy_gradient_loss`, `value_loss`, and `grad_norm` before
        clipping.
    """

    parameters: Parameters
    state: State
    approx_kl: Array
    means: dict[str, Array]


def split(rule: UpdateRule, learning_rate: float) -> tuple[Loss, Rates]:
    """A rule's fixed part and its numbers; `RollsightError` for what the compiled update does not cover."""
    if rule.algorithm != "ppo" or rule.target_kl is not None or rule.normalize_single:
        raise RollsightError(
            f"The compiled engine trains plain PPO, not algorithm={rule.algorithm!r} with "
            f"target_kl={rule.target_kl}; use --engine sb3."
        )
    loss = Loss(rule.normalize_advantage, rule.clip_range_vf is not None, rule.ent_coef, rule.vf_coef)
    return loss, Rates(learning_rate, rule.clip_range, rule.clip_range_vf or 0.0, rule.max_grad_norm)


def update(
    network: Network,
    optimizer: Optimizer,
    parameters: Parameters,
    state: State,
    batch: Batch,
    rule: UpdateRule,
    learning_rate: float,
    minibatches: Minibatches,
) -> Trained:
    """One round's optimisation, as `rollsight.update.run_update` does it with the same minibatches."""
    loss, rates = split(rule, learning_rate)
    steps = (minibatches.index, minibatches.size, minibatches.steps, minibatches.last_epoch)
    trained: Trained = _update(network, optimizer, loss, parameters, state, batch, rates, *steps)
    return trained


@partial(jax.jit, static_argnums=(0, 1, 2))
def _update(
    network: Network,
    optimizer: Optimizer,
    loss: Loss,
    parameters: Parameters,
    state: State,
    batch: Batch,
    rates: Rates,
    index: Array,
    size: Array,
    steps: Array,
    last_epoch: Array,
) -> Trained:
    batch = batch._replace(obs=inputs_of(network, batch.obs))

    def step(i: Array, trained: Trained) -> Trained:
        minibatch: Batch = jax.tree.map(lambda column: column[index[i]], batch)
        slope = jax.value_and_grad(partial(_minibatch_loss, network, loss, rates, minibatch, size[i]), has_aux=True)
        (_, (kl, seen)), gradients = slope(trained.parameters)
        gradients, length = _clip(gradients, rates.max_grad_norm)
        moved, state = optimizer.apply(trained.parameters, gradients, trained.state, rates.learning_rate)
        sums = jax.tree.map(jnp.add, trained.means, {**seen, "grad_norm": length})
        return Trained(moved, state, trained.approx_kl + jnp.where(i >= last_epoch, kl, 0.0), sums)

    # The number of steps is data, so padded steps are not computed at all and a selection compiles nothing anew.
    zeros = {name: jnp.zeros(()) for name in MEANS}
    trained: Trained = jax.lax.fori_loop(0, steps, step, Trained(parameters, state, jnp.zeros(()), zeros))
    means = {name: total / steps for name, total in trained.means.items()}
    return trained._replace(approx_kl=trained.approx_kl / (steps - last_epoch), means=means)


def _minibatch_loss(
    network: Network, loss: Loss, rates: Rates, minibatch: Batch, size: Array, parameters: Parameters
) -> tuple[Array, tuple[Array, dict[str, Array]]]:
    """The minimised loss over the first `size` records of a padded minibatch; the approximate KL, and its part of
    `Trained.means`."""
    real = jnp.arange(len(minibatch.log_probs)) < size
    acts, judges = real & minibatch.in_policy, real & minibatch.in_value

    def mean(terms: Array, among: Array) -> Array:
        return jnp.where(among, terms, 0.0).sum() / jnp.maximum(among.sum(), 1)

    evaluation = evaluate(network, parameters, minibatch.obs, minibatch.actions)
    advantages = minibatch.advantages
    if loss.normalize_advantage:
        advantages = normalized(advantages, acts)
    log_ratio = evaluation.log_prob - minibatch.log_probs
    ratio = jnp.exp(log_ratio)
    policy_loss = -mean(surrogate(ratio, advantages, rates.clip_range), acts)
    value = evaluation.value
    if loss.clip_values:
        change = jnp.clip(value - minibatch.values, -rates.clip_range_vf, rates.clip_range_vf)
        value = minibatch.values + change
    value_loss = mean((minibatch.returns - value) ** 2, judges)
    total = policy_loss + loss.vf_coef * value_loss
    if loss.ent_coef:
        total -= loss.ent_coef * mean(evaluation.entropy, acts)
    outside = mean(jnp.abs(ratio - 1) > rates.clip_range, acts)
    seen = {"clip_fraction": outside, "policy_gradient_loss": policy_loss, "value_loss": value_loss}
    return total, (mean((ratio - 1) - log_ratio, acts), seen)


@partial(jax.jit, static_argnums=0)
def evaluation(network: Network, parameters: Parameters, obs: Any, actions: Any) -> Evaluation:
    """Log-probabilities, entropies and values, (N,) each, for observations (N, ...) as environments give them."""
    return evaluate(network, parameters, inputs_of(network, obs), actions)


def surrogate(ratio: Array, advantages: Array, clip_range: Any) -> Array:
    """(N,) min(r A, clip(r) A), the maximised policy term (Schulman et al. 2017, equation 7)."""
    clipped = jnp.clip(ratio, 1 - clip_range, 1 + clip_range)
    return jnp.asarray(jnp.minimum(advantages * ratio, advantages * clipped))


def normalized(advantages: Array, among: Array) -> Array:
    """(N,) (A - mean) / (std with n - 1 + 1e-8) over the rows of `among` (N,); one single value stays as it is."""
    n = among.sum()
    mean = jnp.where(among, advantages, 0.0).sum() / n
    deviation = jnp.where(among, advantages - mean, 0.0)
    std = jnp.sqrt((deviation**2).sum() / jnp.maximum(n - 1, 1))
    return jnp.asarray(jnp.where(n > 1, deviation / (std + 1e-8), advantages))


def _clip(gradients: Any, max_norm: Any) -> tuple[Any, Array]:
    """Gradients scaled to a common norm of at most `max_norm`, as `torch.nn.utils.clip_grad_norm_` does, and the norm
    that they had."""
    length = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(gradients)))
    return jax.tree.map(lambda g: g * jnp.minimum(1.0, max_norm / (length + 1e-6)), gradients), length
