"""`rollsight study culprits`: does influence find the records that taught a planted behaviour?"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from rollsight.cli import output
from rollsight.cli.progress import use_one_thread
from rollsight.errors import RollsightError

_TABLE = Path("docs/studies/culprits.json")


def study_culprits(
    *,
    seeds: int = 5,
    table: Annotated[Path, tyro.conf.arg(metavar="FILE")] = _TABLE,
    of: tuple[Literal["control", "PPO", "GRPO"], ...] = ("control", "PPO", "GRPO"),
    only_report: bool = False,
) -> None:
    """Plant a reward that pays one action or one style, and find the records that it paid without their tags.

    - The reward is within the environment's own range, in one of eight environments or in a tenth of the
      episodes. Tags of the paid records are seen neither by training nor by any ranking.
    - Influence is compared with reward, |advantage|, |TD error|, nearest states with the same action, recency
      and random: AUROC, precision at 100, and what leaving out the first records of each does to the behaviour
      (drop mode: repack; counterfactual: replay).
    - Language: the miniature language model, paid for a style (an exclamation, upper case) on a tenth of the
      prompts, trained with PPO (rollsight rlhf) and with TRL's GRPO; rankings by reward, |advantage|, text
      similarity, recency and random; precision at 50.
    - What is in the table already is not run again; runs that end without the behaviour are left out.

    Example: rollsight study culprits --only-report

    Args:
        seeds: Of each environment, or trainer, and cause.
        table: Where what was measured is kept.
        of: What to run: environments, or the language model with either trainer.
        only_report: Run nothing; report on what the table holds.
    """
    from rollsight.studies.culprits import results, study
    from rollsight.studies.culprits.comparing import NothingLearntError

    if seeds < 1:
        raise RollsightError(f"--seeds is {seeds}: give at least 1")
    console = output.console()
    rows = study.read(table)
    if not only_report:
        use_one_thread()
        cells = _cells(seeds, of)
        done = {(row["env"], row["cause"], row["seed"]) for row in rows}
        todo = [cell for cell in cells if (cell.env, cell.cause, cell.seed) not in done]
        for place, cell in enumerate(todo, 1):
            console.print(f"{place} of {len(todo)}: {cell.env}, {cell.cause}, seed {cell.seed}")
            folder = Path(tempfile.mkdtemp(prefix="rollsight-culprits-"))
            try:
                rows.append(_measure(cell, folder / "run"))
                study.write(table, rows)
            except NothingLearntError as error:  # says nothing of the others
                console.print(f"left out: {error}", soft_wrap=True)
            finally:
                shutil.rmtree(folder)
    if not rows:
        raise RollsightError(f"{table} holds nothing to report: leave out --only-report")
    output.print_text(console, results.markdown(rows))


def _cells(seeds: int, of: tuple[str, ...]) -> list[Any]:
    """All runs."""
    from rollsight.studies.culprits.planted import PAID, Cause, Cell
    from rollsight.studies.culprits.planted_language import LanguageCell, Style, Trainer

    causes: tuple[Cause, ...] = "one environment", "a tenth of the episodes"
    styles: tuple[Style, ...] = "upper case", "an exclamation"
    trainers: tuple[Trainer, ...] = "PPO", "GRPO"
    control = [Cell(env, cause, seed) for env in PAID for cause in causes for seed in range(seeds)]
    chosen = [(style, one) for style in styles for one in trainers if one in of]
    language = [LanguageCell(one, style, seed) for style, one in chosen for seed in range(seeds)]
    return [*(control if "control" in of else ()), *language]


def _measure(cell: Any, folder: Path) -> dict[str, Any]:
    from rollsight.studies.culprits import language, study
    from rollsight.studies.culprits.planted import Cell

    return study.measure(cell, folder) if isinstance(cell, Cell) else language.measure(cell, folder)
