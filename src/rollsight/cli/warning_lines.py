"""Python warnings as the command line says them: one line each, once a command."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rollsight.escaping import visible

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print every `UserWarning` as `warning: ...` on standard error, the same text once; others as Python does."""
    said: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = " ".join(_COLOURS.sub("", str(message)).split())
        if not issubclass(category, UserWarning):
            before(message, category, filename, lineno, file, line)
        elif text not in said:
            said.add(text)
            print(f"warning: {visible(text)}", file=sys.stderr)

    with warnings.catch_warnings():
        before = warnings.showwarning
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
