"""What studies measured, put together: curves by arm and seed, and the long table of every figure."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from rollsight.analysis.intervals import Interval
from rollsight.errors import RollsightError
from rollsight.runs import whole_file
from rollsight.studies.arms import Arm
from rollsight.studies.cells import KEYS
from rollsight.studies.curves import Curve, after_start, mean_of, seconds_per_round
from rollsight.studies.store import stored

AnArm = TypeVar("AnArm")
LanguageArm = TypeVar("LanguageArm", bound=Arm)


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

    @property
    def named(self) -> dict[str, object]:
        """What begins its rows in the long table."""
        return {"arm": self.arm, "seeds": len(self.curves), "against": self.against}

    def mean(self, name: str) -> float:
        """A column's mean over evaluations after the start, and seeds."""
        return mean_of(map(after_start, self.curves.values()), name)

    def seconds(self, phase: str) -> float:
        """Processor seconds of a phase per round."""
        return seconds_per_round(self.curves.values(), phase)


def read_arms(
    folder: Path, arms: type[LanguageArm], phases: Sequence[str], against: LanguageArm | None
) -> dict[LanguageArm, dict[int, Curve]]:
    """The arms in the folder of a language-model study, with their curves by seed, in the order of tables.

    Raises:
        RollsightError: `against` is none of them.
    """
    found = dict[LanguageArm, dict[int, Curve]]()
    for (arm, seed), columns in stored(folder, KEYS).items():
        found.setdefault(arms.of(str(arm)), {})[int(seed)] = Curve.of(columns, phases)
    found = {arm: found[arm] for arm in sorted(found, key=lambda arm: arm.place)}
    if against is not None and against not in found:
        held = ", ".join(map(str, found)) or "none"
        raise RollsightError(f"{folder} holds no runs of {against}: compare with one of its arms, {held}")
    return found


def row(measure: str, found: Interval) -> dict[str, object]:
    """One figure of the long table."""
    return {"measure": measure, "value": found.value, "low": found.low, "high": found.high}


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
