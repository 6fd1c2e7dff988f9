"""One round between its collection and the next: what its update depends on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from rollsight.arrays import Array, Ints
from rollsight.records import Records
from rollsight.selection import Selection
from rollsight.streams import Purpose, legacy
from rollsight.training.compiled import ppo
from rollsight.training.compiled.batch import Batch, Minibatches
from rollsight.training.compiled.networks import Network, Parameters
from rollsight.training.compiled.optimizers import Optimizer, State
from rollsight.update import UpdateRule
from rollsight.watching import Watch


@dataclass(frozen=True, eq=False)
class Round:
    """Everything that the update of a round depends on.

    number: the round's.
    seed: of every random stream.
    network: what the policy computes.
    optimizer: which optimiser.
    parameters: at the start of the update.
    state: of the optimiser, likewise.
    records: the buffer, with raw advantages.
    rule: hyper-parameters of the update, schedules evaluated.
    learning_rate: of this round.
    gamma: discount factor of the records' advantages.
    gae_lambda: of the records' advantages.
    returns: of the episodes that ended in the round.
    clock: what an arm's phases are timed with.
    watch: what scoring fails into.
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
    returns: Array = field(default_factory=lambda: np.empty(0))
    clock: Callable[[], float] = time.perf_counter
    watch: Watch = field(default_factory=Watch)

    @cached_property
    def batch(self) -> Batch:
        """The records as compiled code takes them."""
        return Batch.of(self.records)

    def order(self) -> np.random.RandomState:
        """The stream that minibatches are drawn from, at its start."""
        return legacy(self.seed, self.number, Purpose.MINIBATCH_ORDER)

    def kept(self, selection: Selection | None) -> Ints:
        """Rows to train on."""
        weights = self.records.valid if selection is None else selection.weights
        return np.flatnonzero(weights.numpy())

    def train(self, minibatches: Minibatches, **columns: Array) -> ppo.Trained:
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
