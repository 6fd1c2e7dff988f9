"""Tables of a run as data frames of pandas or polars, neither of which is needed for anything else."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, TypeAlias

import pyarrow as pa

from rollsight.errors import RollsightError

Library: TypeAlias = Literal["pandas", "polars", "arrow"]


def as_frame(table: pa.Table, library: Library) -> Any:
    """The table as a data frame of this library; "arrow" gives it as it is.

    Raises:
        RollsightError: the library is not installed, or is none of these.
    """
    if library == "arrow":
        return table
    if library not in ("pandas", "polars"):
        raise RollsightError(f"as_={library!r} is not a kind of data frame: give 'pandas', 'polars' or 'arrow'")
    try:
        module = import_module(library)
    except ImportError as error:
        raise RollsightError(
            f"as_={library!r} needs the package {library}, which is not installed: pip install {library}, or give "
            "as_='arrow'"
        ) from error
    return table.to_pandas() if library == "pandas" else module.from_arrow(table)
