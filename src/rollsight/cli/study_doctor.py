"""`rollsight study doctor`: how often planted faults are found, and how often healthy runs are accused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import tyro

from rollsight.cli import output
from rollsight.errors import RollsightError

_TABLE = Path("docs/studies/doctor.parquet")


def study_doctor(
    *,
    seeds: int = 1,
    table: Annotated[Path, tyro.conf.arg(metavar="FILE")] = _TABLE,
    runs: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/study-doctor"),
    keep: bool = False,
    only_report: bool = False,
) -> None:
    """Plant every fault in short runs, beside healthy ones; measure what the checks say of each.

    - A run takes some seconds; what is in the table already is not run again, so that the study goes on where it
      was interrupted.
    - What every check measured stays in the table: thresholds can be changed and reported on without a run.

    Example: rollsight study doctor --only-report

    Args:
        seeds: Seeds of every planted fault; healthy runs have at least two.
        table: Where what was measured is kept.
        runs: Where run folders are written to.
        keep: Keep the run folders.
        only_report: Run nothing; report on what the table holds.
    """
    from rollsight.studies.doctor import results
    from rollsight.studies.doctor.measured import read_rows, rows_of, write_rows

    if seeds < 1:
        raise RollsightError(f"--seeds is {seeds}: give at least 1")
    console = output.console()
    rows = read_rows(table)
    if not only_report:
        from rollsight.studies.doctor.cases import all_cases

        done = {row["run"] for row in rows}
        todo = [case for case in all_cases(seeds) if case.name not in done]
        for place, case in enumerate(todo, 1):
            console.print(f"{place} of {len(todo)}: {case.name}")
            folder = runs / case.name
            if not (runs / f"{case.name}.done").exists():  # of a run that was kept
                case.run(folder)
                (runs / f"{case.name}.done").touch()
            rows += rows_of(case, folder)
            write_rows(table, rows)
            if not keep:
                shutil.rmtree(folder)
                (runs / f"{case.name}.done").unlink()
    if not rows:
        raise RollsightError(f"{table} holds nothing to report: leave out --only-report")
    output.print_text(console, results.markdown(rows))
