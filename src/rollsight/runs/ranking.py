"""Which records of a round stand at the top or the bottom of a score."""

from typing import Any

import numpy as np
import pyarrow as pa

from rollsight.arrays import Bools, Floats
from rollsight.errors import RollsightError


def column_as_floats(table: pa.Table, name: str) -> Floats:
    """A numeric column as (N,) floats, null as NaN.

    Raises:
        RollsightError: there is no such column, or it holds no numbers: the table is of another kind.
    """
    try:
        return np.array(
            table[name].to_pylist(), dtype=np.float64
        )  # `to_numpy` would import pandas, a third of a second
    except (KeyError, ValueError, TypeError) as error:
        raise RollsightError(f"the table has no column {name!r} of numbers: its file is not of this run") from error


def scored_records(records: pa.Table, scores: Floats) -> Bools:
    """Which records (N,) are valid and have a score."""
    valid = records["valid"].to_numpy(zero_copy_only=False) if "valid" in records.column_names else True
    return np.isfinite(scores) & np.asarray(valid, dtype=np.bool_)


def rank_records(records: pa.Table, scores: Floats, n: int, *, lowest: bool = False) -> list[dict[str, Any]]:
    """The `n` valid records with the highest (or lowest) of the scores (N,), best first, ties in buffer order.

    Each is a row of the table as a dict, with its `rank` (from 1) in front and its `score` at the end.
    """
    indices = np.flatnonzero(scored_records(records, scores))
    keys = scores[indices] if lowest else -scores[indices]
    chosen = indices[np.argsort(keys, kind="stable")[:n]]
    rows = records.take(pa.array(chosen)).to_pylist()
    return [
        {"rank": rank, **row, "score": float(scores[index])}
        for rank, (index, row) in enumerate(zip(chosen, rows, strict=True), 1)
    ]
