"""The Monte-Carlo advantage of one record, and where those of a run are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rollsight.analysis.diagnosis import statistics as stats
from rollsight.analysis.diagnosis.advantages import Worker
from rollsight.analysis.diagnosis.branching import EXPLAINED, choose_method
from rollsight.analysis.diagnosis.round import Diagnosis, described, unit_notes
from rollsight.analysis.diagnosis.round_data import RoundData
from rollsight.runs import jsonable, keep_result, results_folder

ANALYSIS = "diagnosis"  # in the folder of a run's results
BRANCHES = 100


def diagnose_record(
    data: RoundData,
    row: int,
    *,
    branches: int = BRANCHES,
    seed: int = 0,
    on_ended: Callable[[int, int], None] = lambda ended, total: None,
) -> dict[str, Any]:
    """Branch one record of a round: the same numbers as `diagnose_round` with these branches and this seed has of it.

    row: in the round's buffer. on_ended: called with the number of branches that are over, and of all.

    Returns what `keep` of a whole round writes, with this record alone.

    Raises `RollsightError` where the environment cannot be branched.
    """
    point = data.point(row)
    env = data.environment.alone()
    method = choose_method(lambda: env, data.see, [point], data.tolerance)
    estimate = Worker(data.experiment(method, branches, seed)).estimate(point, on_ended)
    assert estimate is not None  # there is no deadline
    quintile = int(stats.quintile_of(data.scores, data.scored)[row])
    found = described(data, estimate, {}, quintile, data.tabular())
    return {
        "round": data.round,
        "how": EXPLAINED[method],
        "branches": branches,
        "seed": seed,
        "notes": unit_notes(data),
        "records": [asdict(found)],
    }


def keep(run: Path, diagnosis: Diagnosis) -> None:
    """Keep a diagnosed round next to its run; an earlier one of the round is replaced.

    Raises:
        RollsightError: the file cannot be written.
    """
    folder = results_folder(run, ANALYSIS, f"round-{diagnosis.round}")
    keep_result(folder, jsonable(asdict(diagnosis), non_finite_as_null=True))


def keep_record(run: Path, found: dict[str, Any]) -> None:
    """Keep what `diagnose_record` found next to the run.

    Raises:
        RollsightError: the file cannot be written.
    """
    folder = results_folder(run, ANALYSIS, f"round-{found['round']}-record-{found['records'][0]['row']}")
    keep_result(folder, jsonable(found, non_finite_as_null=True))
