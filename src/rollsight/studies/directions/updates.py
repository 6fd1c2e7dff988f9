"""Every arm's update from the same parameters and buffer, compared on fresh records of the same policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rollsight.arrays import Floats
from rollsight.streams import Purpose, stream
from rollsight.training.compiled.arms import Arm as TrainingArm
from rollsight.training.compiled.arms import Update, divergence, policy_parameters
from rollsight.training.compiled.batch import Batch
from rollsight.training.compiled.collect import Collector
from rollsight.training.compiled.environments import Environments
from rollsight.training.compiled.networks import Network, Parameters, evaluate, inputs_of
from rollsight.training.compiled.ppo import normalized
from rollsight.training.compiled.round import Round


@dataclass(frozen=True)
class Measured:
    """What an arm's update of the policy's parameters did in a round.

    Advantages are normalised over the buffer that they are of: their mean changes no expectation and adds noise.

    round: number of the round.
    arm: name of the arm.
    length: of the update, in units of the training arm's.
    along_own: cosine with the gradient of the mean of log pi x advantage on the round's own buffer.
    along_fresh: the same on the fresh records.
    gain_own: mean of (probability ratio - 1) x advantage after the update on the own buffer, in thousandths: the
        surrogate of the return that PPO maximises, unclipped.
    gain_fresh: the same on the fresh records.
    kl: of the policy before to the one after, on the buffer, in nats.
    """

    round: int
    arm: str
    length: float
    along_own: float
    along_fresh: float
    gain_own: float
    gain_fresh: float
    kl: float


class Compared:
    """An arm for the trainer: the first of `arms` trains, and every `every`-th round the others' updates from the same
    round are compared with its own. `rows` holds what was measured.

    environments: of the fresh records, `records` of which are collected each time by the policy before the update; no
    stream of the training is touched.
    """

    def __init__(
        self, arms: Mapping[str, TrainingArm], environments: Environments, seed: int, records: int, every: int
    ) -> None:
        self._arms, self._environments, self._seed, self._every = arms, environments, seed, every
        self._steps = -(-records // environments.count)
        self._collector: Collector | None = None
        self.rows: list[dict[str, Any]] = []

    def __call__(self, round: Round) -> Update:
        (trains, arm), *others = self._arms.items()
        mine = arm(round)
        if round.number % self._every == 0:
            ends = {trains: mine.trained.parameters}
            ends |= {name: other(round).trained.parameters for name, other in others}
            self.rows += [asdict(one) for one in measure(round, self._fresh(round), ends)]
        return mine

    def _fresh(self, round: Round) -> Batch:
        if self._collector is None:
            self._collector = Collector(self._environments, round.network, round.gamma, round.gae_lambda)
        rng = stream(self._seed, round.number, Purpose.FRESH_ACTIONS)
        return Batch.of(self._collector.collect(round.parameters, self._steps, rng, round.number).records)


def measure(round: Round, fresh: Batch, ends: Mapping[str, Parameters]) -> list[Measured]:
    """What each arm did. fresh: records of the policy that collected the round; ends: the arms' parameters after their
    updates, that of the arm which trains first."""
    names = sorted(policy_parameters(round.network, round.parameters))
    own, true = (_flat(_slope(round.network, round.parameters, batch), names) for batch in (round.batch, fresh))
    start, unit, found = _flat(round.parameters, names), 0.0, list[Measured]()
    for arm, parameters in ends.items():
        step = _flat(parameters, names) - start
        length = float(np.linalg.norm(step))
        unit = unit or length
        gain_own, gain_fresh = (1000 * float(_gain(round.network, parameters, b)) for b in (round.batch, fresh))
        found.append(
            Measured(
                round.number,
                arm,
                length / unit,
                _cosine(step, own),
                _cosine(step, true),
                gain_own,
                gain_fresh,
                divergence(round, parameters),
            )
        )
    return found


@partial(jax.jit, static_argnums=0)
def _slope(network: Network, parameters: Parameters, batch: Batch) -> Parameters:
    advantages = normalized(batch.advantages, batch.valid)

    def target(at: Parameters) -> Array:
        return jnp.mean(_log_prob(network, at, batch) * advantages, where=batch.valid)

    gradient: Parameters = jax.grad(target)(parameters)
    return gradient


@partial(jax.jit, static_argnums=0)
def _gain(network: Network, parameters: Parameters, batch: Batch) -> Array:
    ratio = jnp.exp(_log_prob(network, parameters, batch) - batch.log_probs)
    return jnp.mean((ratio - 1) * normalized(batch.advantages, batch.valid), where=batch.valid)


def _log_prob(network: Network, parameters: Parameters, batch: Batch) -> Array:
    return evaluate(network, parameters, inputs_of(network, batch.obs), batch.actions).log_prob


def _cosine(one: Floats, other: Floats) -> float:
    """nan where either is 0."""
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length else float("nan")


def _flat(parameters: Parameters, names: list[str]) -> Floats:
    """These parameters as one vector."""
    return np.concatenate([np.ravel(np.asarray(parameters[name], np.float64)) for name in names])
