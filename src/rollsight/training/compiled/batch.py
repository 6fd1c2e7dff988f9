"""What a compiled update takes in addition to the parameters: the buffer and the minibatches drawn from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from rollsight.arrays import Array, Ints
from rollsight.records import Records
from rollsight.update import UpdateRule, full_minibatches, repack


class Batch(NamedTuple):
    """A rollout buffer of N records.

    obs: (N, ...).
    actions: (N,) or (N, D).
    log_probs, advantages, returns, values: (N,).
    valid: (N,) booleans, rows that count.
    in_policy: (N,) booleans, rows of the policy's loss.
    in_value: (N,) booleans, rows of the value function's loss.
    """

    obs: Any
    actions: Any
    log_probs: Any
    advantages: Any
    returns: Any
    values: Any
    valid: Any
    in_policy: Any
    in_value: Any

    @classmethod
    def of(cls, records: Records) -> Batch:
        """The columns of plain records (no dictionaries), on the same memory."""
        assert isinstance(records.obs, Tensor)
        assert isinstance(records.actions, Tensor)
        assert records.returns is not None
        assert records.values is not None
        valid = records.valid.numpy()
        return cls(
            records.obs.numpy(),
            records.actions.numpy(),
            records.log_probs.numpy(),
            records.advantages.numpy(),
            records.returns.numpy(),
            records.values.numpy(),
            valid,
            in_policy=valid,
            in_value=valid,
        )


@dataclass(frozen=True, eq=False)
class Minibatches:
    """A round's minibatches, padded to a fixed shape so that a selection never triggers recompilation.

    index: (S, B) rows of the buffer, S being the steps of a full buffer; all beyond `size` and `steps` is padding.
    size: (S,) records in each minibatch.
    steps: optimiser steps to take.
    last_epoch: the first step of the last epoch.
    """

    index: np.ndarray[Any, np.dtype[np.int32]]
    size: np.ndarray[Any, np.dtype[np.int32]]
    steps: int
    last_epoch: int


def draw_minibatches(
    rng: np.random.RandomState, n: int, rule: UpdateRule, kept: Ints | None, fill: bool = False
) -> Minibatches:
    """All epochs' minibatches, drawn exactly as `rollsight.update.run_update` draws them.

    kept: rows of the survivors, which each epoch repacks (docs/definitions.md, Drop mode); None trains on the full
    buffer.
    fill: goes on with further epochs, the last one possibly cut short, until the full buffer's steps are reached.
    """
    width = rule.batch_size or n
    index = np.zeros((rule.n_epochs * -(-n // width), width), np.int32)
    size = np.zeros(len(index), np.int32)
    steps = last_epoch = 0
    epoch = 0
    while steps < len(index) if fill else epoch < rule.n_epochs:
        last_epoch, epoch = steps, epoch + 1
        if kept is None or len(kept) == n:
            parts = full_minibatches(n, rule, rng)
        else:
            parts = repack(rng.permutation(kept), width)
        for part in parts[: len(index) - steps]:
            index[steps, : len(part)], size[steps] = part, len(part)
            steps += 1
    return Minibatches(index, size, steps, last_epoch)


def draw_prioritised(rng: np.random.RandomState, rule: UpdateRule, probabilities: Array) -> Minibatches:
    """As many full minibatches as all epochs have, each record drawn with its probability (N,), with replacement."""
    n = len(probabilities)
    width = rule.batch_size or n
    a_epoch = -(-n // width)
    index = rng.choice(n, (rule.n_epochs * a_epoch, width), p=probabilities).astype(np.int32)
    return Minibatches(index, np.full(len(index), width, np.int32), len(index), len(index) - a_epoch)
