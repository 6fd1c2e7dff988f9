"""`rollsight study culprits`: does influence find the records that taught a planted behaviour?"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import tyro

from rollsight.cli import output
from rollsight.cli.progress import use_one_thread
from rollsight.errors import RollsightError

_TABLE = Path("docs/studies/culprits.json")


def study_culprits(
    *,
    seeds: int = 5,
    table: Annotated[Path, tyro.conf.arg(metavar="FILE")] = _TABLE,
    only_report: bool = False,
) -> None:
    """Plant a reward that pays one action, and find the records that it paid without looking at who was paid.

    - The reward is within the environment's own range, in one of eight environments or in a tenth of the
      episodes. Tags of the paid records are seen neither by training nor by any ranking.
    - Influence is compared with reward, |advantage|, |TD error|, nearest states with the same action, recency
      and random: AUROC, precision at 100, and what leaving out the first records of each does to the behaviour
      (drop mode: repack; counterfactual: replay).
    - What is in the table already is not run again.

    Example: rollsight study culprits --only-report

    Args:
        seeds: Of each environment and cause.
        table: Where what was measured is kept.
        only_report: Run nothing; report on what the table holds.
    """
    from rollsight.studies.culprits import results, study
    from rollsight.studies.culprits.planted import PAID, Cause, Cell

    if seeds < 1:
        raise RollsightError(f"--seeds is {seeds}: give at least 1")
    console = output.console()
    rows = study.read(table)
    if not only_report:
        use_one_thread()
        causes: tuple[Cause, ...] = "one environment", "a tenth of the episodes"
        cells = [Cell(env, cause, seed) for env in PAID for cause in causes for seed in range(seeds)]
        done = {(row["env"], row["cause"], row["seed"]) for row in rows}
        todo = [cell for cell in cells if (cell.env, cell.cause, cell.seed) not in done]
        for place, cell in enumerate(todo, 1):
            console.print(f"{place} of {len(todo)}: {cell.env}, {cell.cause}, seed {cell.seed}")
            folder = Path(tempfile.mkdtemp(prefix="rollsight-culprits-"))
            rows.append(study.measure(cell, folder / "run"))
            shutil.rmtree(folder)
            study.write(table, rows)
    if not rows:
        raise RollsightError(f"{table} holds nothing to report: leave out --only-report")
    output.print_text(console, results.markdown(rows))
