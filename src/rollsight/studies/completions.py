"""What a policy wrote: a round's completions of highest and lowest score, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.studies.arms import AnArm
from rollsight.studies.cells import run_folder
from rollsight.studies.markdown import table
from rollsight.studies.results import ArmCurves

_SHOWN = 8  # completions at either end


def page(folder: Path, arms: Sequence[ArmCurves[AnArm]], round: int | None) -> str:
    """Completions of these arms' first seeds; empty where none of their run folders is in the study's folder. round
    None: the last.

    Raises:
        RollsightError: a run does not have the round.
    """
    sections = list[str]()
    for one in arms:
        seed = min(one.curves)
        if runs.is_run(path := run_folder(folder, one.arm, seed)):
            sections += by_score(path, f"`{one.arm}`, seed {seed}", round, _SHOWN)
    return "\n\n".join(["# Completions by score", *sections]) + "\n" if sections else ""


def by_score(path: Path, title: str, round: int | None, n: int) -> Iterator[str]:
    """Two sections, the n completions of highest and of lowest score in the run folder's round; None: the last.

    Raises:
        RollsightError: the run does not have the round.
    """
    opened = runs.open(path)
    if round is not None and round not in opened.rounds:
        raise RollsightError(f"{path} has no round {round}: its rounds are {runs.spell(opened.rounds)}")
    chosen = max(opened.rounds) if round is None else round
    records = opened.records(chosen)
    target = next(name for name in records.column_names if name.startswith("score_"))
    scores = runs.column_as_floats(records, target)
    for lowest in (False, True):
        rows = [
            [f"{row['score']:.3g}", f"{row['reward']:.3g}", "yes" if row["kept"] else "no"]
            + [_quoted(row[name]) for name in ("prompt", "completion")]
            for row in runs.rank_records(records, scores, n, lowest=lowest)
        ]
        which = "lowest" if lowest else "highest"
        heading = f"## {title}, round {chosen}: {which} scores ({target.removeprefix('score_')})"
        yield f"{heading}\n\n" + table(["score", "reward", "kept", "prompt", "completion"], rows)


def _quoted(text: str) -> str:
    """As a cell of a Markdown table shows it: nothing in it is markup."""
    return text.replace("\\", "\\\\").replace("<", "&lt;")
