"""Watching never stops training: a failure in scoring, recording or showing a round is a warning and a null."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from rollsight.errors import RollsightError

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Watch:
    """Runs what only watches training, and remembers what failed.

    Of each kind of failure the first is a Python warning; all are in the text of their round, which goes to the run
    folder's `rounds` table (column `warnings`).
    """

    def __init__(self) -> None:
        self.round = 0
        self._warned: set[tuple[str, str]] = set()
        self._in_round: dict[str, None] = {}

    def begin(self, round: int) -> None:
        """What fails from now on belongs to this round."""
        self.round, self._in_round = round, {}

    def attempt(
        self, part: str, call: Callable[Given, Result], *args: Given.args, **keywords: Given.kwargs
    ) -> Result | None:
        """What `call` returns, or None where it raises: then training goes on without it.

        part: what is attempted, as it stands in the warning: "scores of 'return'". Only an `Exception` is caught: a
        KeyboardInterrupt ends training as it always does.
        """
        try:
            return call(*args, **keywords)
        except Exception as error:
            text = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
            named = text if isinstance(error, RollsightError) else f"{type(error).__name__}: {text}"
            self.warn(part, f"no {part} ({named}); training goes on", type(error).__name__)
            return None

    def warn(self, part: str, text: str, kind: str = "", log: Callable[[str], None] | None = None) -> None:
        """Keep `text` for the round's summary, and say it where nothing of this part and kind was said before: with
        `log`, or as a Python warning where that is None or raises."""
        text = f"round {self.round}: {text}"
        self._in_round[text] = None
        if (part, kind) not in self._warned:
            self._warned.add((part, kind))
            if log is None or not self._logged(log, text):
                warnings.warn(text, stacklevel=2)

    def _logged(self, log: Callable[[str], None], text: str) -> bool:
        try:
            log(text)
        except Exception:  # a closed file of the host's: the warning says it
            return False
        return True

    @property
    def said(self) -> str | None:
        """Everything that went wrong in this round, one sentence a line, none twice; None where nothing did."""
        return "\n".join(self._in_round) or None
