"""Watching never stops training: a failure in scoring, recording or showing a round is a warning and a null."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

from rollsight.errors import RollsightError

Result = TypeVar("Result")


class Watch:
    """Runs what only watches training, and remembers what failed.

    Of each kind of failure the first is a Python warning; all are in the text of their round, which goes to the run
    folder's `rounds` table (column `warnings`).
    """

    def __init__(self) -> None:
        self._warned: set[tuple[str, str]] = set()
        self._in_round: list[str] = []

    def attempt(self, part: str, call: Callable[[], Result], round: int) -> Result | None:
        """What `call` returns, or None where it raises: then training goes on without it.

        part: what is attempted, as it stands in the warning: "the scores of 'return'". Whatever `call` changed before
        it failed is its own affair. Only an `Exception` is caught: a KeyboardInterrupt ends training as it always does.
        """
        try:
            return call()
        except Exception as error:
            text = str(error).strip().partition("\n")[0].rstrip(".")
            named = text if isinstance(error, RollsightError) else f"{type(error).__name__}: {text}".rstrip(": ")
            self.warn(f"round {round}: no {part} ({named}); training goes on", (part, type(error).__name__))
            return None

    def warn(self, text: str, kind: tuple[str, str]) -> None:
        """Say `text` if nothing of this kind was said before, and keep it for the round's summary in any case."""
        self._in_round.append(text)
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(text, stacklevel=2)

    def of_round(self) -> str | None:
        """The text of everything that went wrong since the last call, None where nothing did."""
        said, self._in_round = self._in_round, []
        return " | ".join(said) or None
