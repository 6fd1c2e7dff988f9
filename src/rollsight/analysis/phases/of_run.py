"""The formation of a behaviour that is named by a record of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from rollsight.analysis.phases.formation import Development, development
from rollsight.errors import RollsightError
from rollsight.records import Rows, take_rows
from rollsight.runs import Run, jsonable
from rollsight.snapshot import Snapshot

Report = Callable[[int, int], None]  # rounds done, rounds in all


def behaviour_of(run: Run, round: int, env: int, step: int) -> tuple[Rows, Rows]:
    """State and action of a record, each with leading 1, from its round's snapshot: the run's table may lack large
    observations.

    Raises:
        RollsightError: the round has no snapshot, or no such record.
    """
    records = Snapshot.load(run.snapshot_path(round)).records
    row = ((records.ids["env"] == env) & (records.ids["step"] == step)).nonzero()[0]
    if len(row) != 1:
        raise RollsightError(f"round {round} of {run.path} has no record at environment {env}, step {step}")
    return take_rows(records.obs, row), take_rows(records.actions, row)


def development_of(run: Run, obs: Rows, action: Rows, report: Report | None = None, **how: Any) -> Development:
    """Follow a behaviour through every round of the run that has a snapshot.

    how: as `development`.

    Raises:
        RollsightError: the run has no snapshots, or one cannot be loaded.
    """
    numbers = run.snapshot_rounds
    if not numbers:
        raise RollsightError(f"{run.path} has no snapshots, which the scores need: train with --snapshots all")

    def snapshots() -> Iterator[Snapshot]:
        for done, number in enumerate(numbers):
            if report is not None:
                report(done, len(numbers))
            yield Snapshot.load(run.snapshot_path(number))

    final = Snapshot.load(run.snapshot_path(numbers[-1])).replay().policy
    return development(snapshots(), final, obs, action, **how)


def as_json(run: Run, result: Development, record: str | None, obs: Rows, action: Rows) -> dict[str, Any]:
    """What is kept of a result."""
    explained = {"record": record, "obs": _plain(obs), "action": _plain(action)}
    last = run.snapshot_rounds[-1]
    return {"run": str(run.path), "explained": explained, "embedded_by_policy_after": last, **jsonable(result)}


def _plain(rows: Rows) -> Any:
    if isinstance(rows, Mapping):
        return {name: np.asarray(part[0]).tolist() for name, part in rows.items()}
    return np.asarray(rows[0]).tolist()
