"""The moment when training starts, and the round that it goes on after where it resumes from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

_NAME = "Rollsight"  # of the round among the callbacks' states, which the trainer's checkpoints hold


class Start(TrainerCallback):
    """Tells when training starts."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begin()


def keep_round(state: Any, round: int) -> None:
    """The round, to the checkpoints that the trainer makes from now on."""
    state.stateful_callbacks[_NAME] = {"args": {}, "attributes": {"round": round}}


def round_of_checkpoint(trainer: Any) -> int:
    """How many generation batches were made before the checkpoint that training resumes from: its own count, or, of a
    training that nothing was attached to, what its steps need.

    TRL keeps no generation batch in a checkpoint. Resumed in the middle of one it makes another: a further round.
    """
    args, state = trainer.args, trainer.state
    kept = (state.stateful_callbacks or {}).get(_NAME)
    if kept is not None:
        return int(kept["attributes"]["round"])
    micro_batches: int = state.global_step * args.gradient_accumulation_steps
    return -(-micro_batches // int(args.steps_per_generation * args.num_iterations))  # rounded up
