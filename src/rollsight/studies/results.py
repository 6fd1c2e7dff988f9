"""What the studies' folders hold: curves by arm and seed, and the long table of every figure."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from rollsight.errors import RollsightError
from rollsight.runs import whole_file
from rollsight.studies import arms
from rollsight.studies.curves import Curve, after_start, files_by_seed, mean_of, read_curve, seconds_per_round

AnArm = TypeVar("AnArm")
LanguageArm = TypeVar("LanguageArm", bound=arms.Arm)


@dataclass(frozen=True, eq=False)
class ArmCurves(Generic[AnArm]):
    """One arm of a study.

    arm: the arm.
    curves: by seed.
    against: the arm that it is compared with; None where there is none.
    """

    arm: AnArm
    curves: Mapping[int, Curve]
    against: AnArm | None

    def mean(self, name: str) -> float:
        """A column's mean over evaluations after the start, and seeds."""
        return mean_of(map(after_start, self.curves.values()), name)

    def seconds(self, phase: str) -> float:
        """Processor seconds of a phase per round."""
        return seconds_per_round(self.curves.values(), phase)


def read_curves(folder: Path, phases: Sequence[str]) -> dict[int, Curve]:
    """The curves in an arm's folder, by seed."""
    return {seed: read_curve(path, phases) for seed, path in files_by_seed(folder).items()}


def read_arms(
    folder: Path,
    arm_of: Callable[[str], LanguageArm],
    kinds: Sequence[str],
    phases: Sequence[str],
    against: LanguageArm | None,
) -> dict[LanguageArm, dict[int, Curve]]:
    """The arms in the folder of a language-model study that have a curve, in the order of tables.

    Raises:
        RollsightError: `against` is none of them.
    """
    found = {arm_of(name) for name in {path.parent.name for path in folder.glob("*/*.csv")}}
    order = sorted(found, key=lambda arm: arms.place(arm, kinds))
    if against is not None and against not in found:
        held = ", ".join(map(str, order)) or "none"
        raise RollsightError(f"{folder} holds no runs of {against}: compare with one of its arms, {held}")
    return {arm: read_curves(folder / str(arm), phases) for arm in order}


def row(measure: str, value: float, low: float, high: float) -> dict[str, object]:
    """One figure of the long table, with its interval."""
    return {"measure": measure, "value": value, "low": low, "high": high}


def write_table(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a long table, nan as an empty cell; it appears whole or not at all."""
    found = [{name: _cell(value) for name, value in row.items()} for row in rows]
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.5g}"
    return "" if value is None else value
