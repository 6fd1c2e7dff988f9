"""What a study's folder holds, put together: every arm on its own and against plain GRPO."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.studies.curves import Curve, files_by_seed, mean_of, read_curve, seconds_per_round
from rollsight.studies.grpo.arms import KINDS, Arm, arm_of
from rollsight.studies.grpo.cell import settings_of
from rollsight.studies.grpo.training import PHASES, Settings
from rollsight.studies.paired import Compared, after_start, compared, end, figures


def _area(curve: Curve, name: str) -> float:
    return float(after_start(curve)[name].mean())


# What is measured of an arm's curves. The area is the mean over the evaluations after the start.
MEASURES: Mapping[str, Callable[[Curve], float]] = {
    "final_accuracy": lambda curve: end(curve, "accuracy"),
    "area_accuracy": lambda curve: _area(curve, "accuracy"),
    "final_greedy": lambda curve: end(curve, "greedy"),
    "final_train_reward": lambda curve: end(curve, "train_reward"),
}


@dataclass(frozen=True, eq=False)
class ArmResult:
    """One arm: its curves by seed, and each of `MEASURES` against GRPO with the same learning rate, else plain GRPO."""

    arm: Arm
    curves: Mapping[int, Curve]
    against: Arm | None
    measures: Mapping[str, Compared]

    def mean(self, name: str) -> float:
        """A column's mean over evaluations after the start, and seeds."""
        return mean_of(map(after_start, self.curves.values()), name)

    def seconds(self, phase: str) -> float:
        """Processor seconds of a phase per round."""
        return seconds_per_round(self.curves.values(), phase)


@dataclass(frozen=True, eq=False)
class Results:
    """The study: its arms, its settings, and accuracy and greedy accuracy before training."""

    arms: list[ArmResult]
    settings: Settings
    start: tuple[float, float]


def read_results(folder: Path) -> Results:
    """The study in a folder, as far as its runs are done.

    Raises:
        RollsightError: there is no study in it, or no curve yet.
    """
    settings = settings_of(folder)
    names = sorted({path.parent.name for path in folder.glob("*/*.csv")})
    found = {arm: _curves(folder / str(arm)) for arm in sorted(map(arm_of, names), key=_place)}
    if not found:
        raise RollsightError(f"{folder} holds no finished run: run `rollsight study grpo --out {folder}` first")
    starts = {seed: curve for curves in found.values() for seed, curve in curves.items()}.values()
    start = tuple(float(np.mean([curve[name][0] for curve in starts])) for name in ("accuracy", "greedy"))
    return Results([_arm(arm, found) for arm in found], settings, (start[0], start[1]))


def write_csv(results: Results, path: Path) -> None:
    """Every figure in one long table: arm, seeds, against, measure, value, low, high."""
    with runs.whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("arm", "seeds", "against", "measure", "value", "low", "high"))
        for one in results.arms:
            for measure, *numbers in figures(one.measures):
                row = ["" if np.isnan(number) else f"{number:.5g}" for number in numbers]
                writer.writerow((one.arm, len(one.curves), one.against or "", measure, *row))


def _arm(arm: Arm, found: Mapping[Arm, Mapping[int, Curve]]) -> ArmResult:
    curves = found[arm]
    choices = (Arm("grpo", lr=arm.lr), Arm("grpo"))
    against = next((one for one in choices if one in found and one != arm), None)
    standard = found[against] if against is not None else {}
    seeds = [seed for seed in curves if seed in standard]
    measures = {
        name: compared(
            [measure(curve) for curve in curves.values()],
            [(measure(standard[seed]), measure(curves[seed])) for seed in seeds],
        )
        for name, measure in MEASURES.items()
    }
    return ArmResult(arm, curves, against, measures)


def _curves(folder: Path) -> dict[int, Curve]:
    return {seed: read_curve(path, PHASES) for seed, path in files_by_seed(folder).items()}


def _place(arm: Arm) -> tuple[float, ...]:
    """Arms of one learning rate together, the study's first, GRPO before the others."""
    return arm.lr or 0.0, list(KINDS).index(arm.kind), -arm.p
