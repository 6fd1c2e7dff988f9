"""One round between its collection and the next: what its update depends on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from rollsight.records import Records
from rollsight.selection import Selection
from rollsight.streams import Purpose, legacy
from rollsight.training.classic import ppo
from rollsight.training.classic.batch import Batch, Minibatches
from rollsight.training.classic.networks import Network, Parameters
from rollsight.training.classic.optimizers import Optimizer, State
from rollsight.update import Indices, UpdateRule
from rollsight.watching import Watch

Floats: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Round:
    """Everything that the update of round `number` depends on. gamma, gae_lambda: of its records' advantages.

    returns: of the episodes that ended in it.
    clock: what an arm's phases are timed with; watch: what scoring fails into.
    """

    number: int
    seed: int
    network: Network
    optimizer: Optimizer
    parameters: Parameters
    state: State
    records: Records
    rule: UpdateRule
    learning_rate: float
    gamma: float
    gae_lambda: float
    returns: Floats = field(default_factory=lambda: np.empty(0))
    clock: Callable[[], float] = time.perf_counter
    watch: Watch = field(default_factory=Watch)

    @cached_property
    def batch(self) -> Batch:
        """The records as compiled code takes them."""
        return Batch.of(self.records)

    def order(self) -> np.random.RandomState:
        """The stream that minibatches are drawn from, at its start."""
        return legacy(self.seed, self.number, Purpose.MINIBATCH_ORDER)

    def kept(self, selection: Selection | None) -> Indices:
        """Rows to train on."""
        weights = self.records.valid if selection is None else selection.weights
        return np.flatnonzero(weights.numpy())

    def train(self, minibatches: Minibatches, **columns: Floats) -> ppo.Trained:
        """The update over these minibatches. columns: of the batch, where they are others than the records say."""
        trained = ppo.update(
            self.network,
            self.optimizer,
            self.parameters,
            self.state,
            self.batch._replace(**columns),
            self.rule,
            self.learning_rate,
            minibatches,
        )
        trained.approx_kl.block_until_ready()  # a clock would else read when the update was asked for
        return trained

    def after(self, trained: ppo.Trained) -> Round:
        """The same round at the parameters and optimiser state of a part of its update."""
        return replace(self, parameters=trained.parameters, state=trained.state)
