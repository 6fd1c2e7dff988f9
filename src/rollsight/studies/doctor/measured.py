"""What every check measures in every run, as one table: thresholds can be set anew without a run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rollsight import runs
from rollsight.doctor.evidence import Evidence, read
from rollsight.doctor.examination import CHECKS, NotLookedAt, measure
from rollsight.runs import whole_file
from rollsight.studies.doctor import others
from rollsight.studies.doctor.baseline import EXPLAINED_VARIANCE
from rollsight.studies.doctor.faults import FAULTS
from rollsight.studies.doctor.language import LANGUAGE_FAULTS

MEASURED = (*CHECKS, EXPLAINED_VARIANCE)
UNTIL = (3, 5, 7)  # rounds after which the checks are made too, beside the end of the run

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("run", "env", "fault", "rate", "engine", "check")),
        ("strength", pa.float64()),
        *((name, pa.int64()) for name in ("seed", "rounds")),
        ("last", pa.bool_()),
        ("value", pa.float64()),
        *((name, pa.list_(pa.int64())) for name in ("environments", "features", "at_rounds")),
    ]
)


def rows_of(case: Any, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each check at the end of the run; of those that name its fault after some rounds too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = read(runs.open(folder))
    ends = [*(n for n in UNTIL if n < len(whole.rounds)), len(whole.rounds)]
    about = {name: getattr(case, name) for name in ("env", "fault", "strength", "seed", "rate", "engine")}
    for end in ends:
        at_end = end == len(whole.rounds)
        # After fewer rounds only what tells when a fault was found first.
        checks = [one for one in MEASURED if at_end or one.name in right_checks(case.fault)]
        for check, found in measure(whole if at_end else _beginning(whole, end), checks):
            if found is None or isinstance(found, NotLookedAt):
                continue
            yield {
                "run": case.name,
                **about,
                "check": check.name,
                "rounds": end,
                "last": at_end,
                "value": float(np.nan_to_num(found.value)),
                "environments": list(found.where.environments),
                "features": list(found.where.features),
                "at_rounds": list(found.where.rounds),
            }
    if case.engine == "rlhf":
        empty: dict[str, list[int]] = {"environments": [], "features": [], "at_rounds": []}
        for name, value in _of_others(folder):
            yield {"run": case.name, **about, "check": name, "rounds": ends[-1], "last": True, "value": value, **empty}


def _of_others(folder: Path) -> Iterator[tuple[str, float]]:
    """For each of the other tools that is installed, how much it finds, and 1 for each thing that it finds."""
    for tool, names in others.findings(folder).items():
        yield tool, float(len(names))
        yield from ((f"{tool}: {name}", 1.0) for name in dict.fromkeys(names))


def _beginning(whole: Evidence, end: int) -> Evidence:
    kept = {number: table for number, table in whole.tables.items() if number <= whole.rounds[end - 1]}
    summaries = {name: column[:end] for name, column in whole.summaries.items()}
    return Evidence(whole.metadata, whole.rounds[:end].tolist(), summaries, kept)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What was measured so far."""
    return list(pq.read_table(path).to_pylist()) if path.exists() else []


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], SCHEMA), temporary, compression="zstd")


def right_checks(fault: str | None) -> tuple[str, ...]:
    """The checks that name a fault's cause; none of a healthy run."""
    if fault is None:
        return ()
    return FAULTS[fault].right if fault in FAULTS else LANGUAGE_FAULTS[fault].right
