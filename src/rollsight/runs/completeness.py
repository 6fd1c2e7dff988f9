"""How much of a run is there: rounds and rows against what was written, and whether somebody is still writing.

Cheap: names of files, the list of digests, and the summaries' counts of records; `rollsight check` reads every byte.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from rollsight.runs.layout import Kind, is_being_written, round_numbers, round_path, temporary_files
from rollsight.runs.reader import Run
from rollsight.runs.verified import VerifiedFiles

State = Literal["writing", "ended", "stopped in a round"]

_OF_A_ROUND: tuple[Kind, ...] = ("records", "snapshots", "policies", "checkpoints")
_EVERY_KIND: tuple[Kind, ...] = ("rounds", "records", "evaluations", "snapshots", "policies", "checkpoints")
_counted: dict[Path, tuple[tuple[int, int], int | str | None]] = {}


@dataclass(frozen=True)
class Completeness:
    """What of a run is there.

    state: somebody holds the lock ("writing"); nobody does ("ended"), but files of an unfinished round are there
        ("stopped in a round": the writer was killed or crashed).
    complete: rounds with their summary.
    in_flight: rounds of which there are files and no summary.
    missing: kind of file -> rounds whose file was written and is gone.
    unreadable: round -> what is wrong with its records, in words.
    rows: records that are there.
    expected: records that the summaries count, None where they do not say.
    """

    state: State
    complete: tuple[int, ...]
    in_flight: tuple[int, ...]
    missing: dict[Kind, tuple[int, ...]]
    unreadable: dict[int, str]
    rows: int
    expected: int | None

    @property
    def whole(self) -> bool:
        """Whether nothing is missing or unreadable, and all rows are there."""
        return not self.missing and not self.unreadable and self.expected in (None, self.rows)


def completeness(run: Run) -> Completeness:
    """What of the run is there, and what is not. Files that did not change since the last call are not opened again."""
    path = run.path
    writing = is_being_written(path)
    complete = round_numbers(path, "rounds")
    last = max(complete, default=0)
    recorded = round_numbers(path, "records")
    flying = sorted({number for kind in _OF_A_ROUND for number in round_numbers(path, kind) if number > last})
    left = any(temporary_files(path / kind) for kind in ("rounds", *_OF_A_ROUND))
    files = VerifiedFiles(path, (run.metadata.get("digests") or {}).get("from_round"))
    missing = {kind: tuple(gone) for kind in _EVERY_KIND if (gone := files.missing(kind))}
    rows, expected, unreadable = 0, 0, dict[int, str]()
    counted = True
    for round in complete:
        count = _count(round_path(path, "rounds", round))
        counted = counted and isinstance(count, int)
        expected += count if isinstance(count, int) else 0
    for round in sorted(set(complete) & set(recorded)):
        count = _count(round_path(path, "records", round))
        if isinstance(count, int):
            rows += count
        else:
            unreadable[round] = count or "it does not say how many rows it has"
    state: State = "writing" if writing else "stopped in a round" if flying or left else "ended"
    return Completeness(
        state, tuple(complete), tuple(flying), missing, unreadable, rows, expected if counted and recorded else None
    )


def _count(path: Path) -> int | str | None:
    """Rows of a table of records, or the records that a summary counts; None where it does not say, a text where it
    cannot be read."""
    try:
        found = os.stat(path)
        state = found.st_mtime_ns, found.st_size
        if path not in _counted or _counted[path][0] != state:
            _counted[path] = state, _read_count(path)
        return _counted[path][1]
    except OSError as error:
        return str(error)


def _read_count(path: Path) -> int | str | None:
    try:
        with pq.ParquetFile(path) as file:
            if path.parent.name == "records":
                return int(file.metadata.num_rows)
            if "records" not in file.schema_arrow.names:
                return None
            (count,) = file.read(["records"])["records"].to_pylist()
            return None if count is None else int(count)
    except Exception as error:  # bytes that are not Parquet fail in whatever way the parser comes across them
        return f"{path.name} is damaged ({type(error).__name__})"
