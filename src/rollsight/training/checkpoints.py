"""What a killed run goes on from: one file with the state after a round, tensors and plain values only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.watching import Watch

State: TypeAlias = Mapping[str, Any]
"""Tensors, numbers, texts, and lists and dictionaries of them: nothing that executes code when it is loaded."""

_FORMAT = 1
_SHARE = 0.01  # of the time since the last checkpoint that writing one may take


class Checkpoints:
    """Keeps the newest checkpoint of a run.

    Writing takes at most a hundredth of the time that training takes: rounds of a second or more have a checkpoint
    each, and of shorter ones every few do.
    """

    def __init__(self, writer: runs.RunWriter, state: Callable[[], State]) -> None:
        self._writer, self._state = writer, state
        self._older = runs.open(writer.path).checkpoint_rounds
        self._watch = Watch()
        self._written, self._cost = time.monotonic(), 0.0

    def after(self, round: int, *, last: bool = False) -> None:
        """Write one after this complete round, where it is due or the run's last; the one before is removed then."""
        started = time.monotonic()
        if not last and self._cost > _SHARE * (started - self._written):
            return
        self._watch.begin(round)
        self._watch.attempt("checkpoint to resume from", lambda: self._write(round))
        self._written = time.monotonic()
        self._cost = self._written - started

    def _write(self, round: int) -> None:
        state = {"format": _FORMAT, "round": round, **self._state()}
        self._writer.write_checkpoint(round, lambda file: torch.save(state, file))
        for older in self._older:
            self._writer.remove_checkpoint(older)
        self._older = [round]


def newest(path: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint of a run, its round among it; None where no round was completed.

    Raises:
        RollsightError: there is none although there are rounds, or the file is damaged.
    """
    run = runs.open(path)
    if not run.checkpoint_rounds:
        if run.rounds:
            raise RollsightError(f"the run {path} has no checkpoint to resume from: start it again")
        return None
    file = run.checkpoint_path(run.checkpoint_rounds[-1])
    state = _read(file)
    if state.get("format") != _FORMAT:
        raise RollsightError(f"{file} was written by another version of rollsight: resume the run with that version")
    return state


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict):
            return state
        reason = "it holds something else"
    except OSError:
        raise
    except Exception as error:  # bytes that are not a checkpoint fail in whatever way the unpickler comes across them
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    raise RollsightError(f"{path} is not a readable checkpoint ({reason}): start the run again")
