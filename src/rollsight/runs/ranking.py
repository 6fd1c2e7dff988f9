"""Which records of a round stand at the top or the bottom of a score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rollsight.arrays import Bools, Floats
from rollsight.errors import RollsightError

if TYPE_CHECKING:
    from rollsight.runs.reader import Run


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


def scored_round(run: Run, target: str | None, round: int | None) -> tuple[int, str]:
    """The given round, or the last one, with stored scores of the target; no target is the first that it stores.

    Raises:
        RollsightError: there is none; the message says which targets are stored.
    """
    hint = ", or explain one action with --record ENV:STEP" if target == "action" else ""
    if round is not None:
        stored = run.targets(round)
        if not stored or target not in (None, *stored):
            choices = f"choose from {', '.join(stored)}" if stored else "it was not scored, choose another round"
            what = "no scores" if target is None else f"no scores of {target!r}"
            raise RollsightError(f"round {round} of {run.path} stores {what}: {choices}{hint}")
        return round, target or stored[0]
    found: dict[str, None] = {}
    for candidate in reversed(run.rounds):
        stored = run.targets(candidate)
        if stored and target in (None, *stored):
            return candidate, target or stored[0]
        found |= dict.fromkeys(stored)
    choices = f"choose from {', '.join(found)}" if found else "no round is scored yet"
    what = "no scores" if target is None else f"no scores of {target!r}"
    raise RollsightError(f"{run.path} stores {what}: {choices}{hint}")
