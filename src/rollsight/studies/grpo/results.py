"""What a study's folder holds, put together: every arm on its own and against plain GRPO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rollsight.errors import RollsightError
from rollsight.studies.arms import standard_of
from rollsight.studies.curves import Curve, after_start
from rollsight.studies.grpo.arms import GRPOArm
from rollsight.studies.grpo.settings import PHASES, Settings
from rollsight.studies.paired import Compared, Measure, compare, end, figures
from rollsight.studies.results import ArmCurves, read_arms
from rollsight.studies.settings import stored_settings


def _area(curve: Curve, name: str) -> float:
    return float(after_start(curve)[name].mean())


# What is measured of an arm's curves. The area is the mean over the evaluations after the start.
MEASURES: Mapping[str, Measure] = {
    "final_accuracy": lambda curve: end(curve, "accuracy"),
    "area_accuracy": lambda curve: _area(curve, "accuracy"),
    "final_greedy": lambda curve: end(curve, "greedy"),
    "final_train_reward": lambda curve: end(curve, "train_reward"),
}


@dataclass(frozen=True, eq=False)
class ArmResult(ArmCurves[GRPOArm]):
    """One arm against GRPO with the same learning rate, else plain GRPO, or against a given arm.

    measures: each of `MEASURES`, with the difference.
    """

    measures: Mapping[str, Compared]


@dataclass(frozen=True, eq=False)
class Results:
    """The study.

    arms: its arms.
    settings: that the runs share.
    start: accuracy and greedy accuracy before training.
    standard: what differences are to.
    """

    arms: list[ArmResult]
    settings: Settings
    start: tuple[float, float]
    standard: str


def read_results(folder: Path, against: GRPOArm | None = None) -> Results:
    """The study in a folder, as far as its runs are done. Arms are compared with their own GRPO, or all `against` one.

    Raises:
        RollsightError: there is no study in it, or no curve yet, or none of `against`.
    """
    settings = _settings(folder)
    found = read_arms(folder, GRPOArm, PHASES, against)
    if not found:
        raise RollsightError(f"{folder} holds no finished run: run `rollsight study grpo --out {folder}` first")
    starts = {seed: curve for curves in found.values() for seed, curve in curves.items()}.values()
    start = tuple(float(np.mean([curve[name][0] for curve in starts])) for name in ("accuracy", "greedy"))
    arms = [_arm(arm, found, against) for arm in found]
    return Results(arms, settings, (start[0], start[1]), "GRPO" if against is None else f"`{against}`")


def rows(results: Results) -> Iterator[dict[str, object]]:
    """Every figure in one long table: arm, seeds, against, measure, value, low, high; differences are named so."""
    for one in results.arms:
        yield from (one.named | figure for figure in figures(one.measures))


def _settings(folder: Path) -> Settings:
    try:
        return Settings(**stored_settings(folder, "grpo"))
    except TypeError as error:
        raise RollsightError(f"{folder} holds another study than `rollsight study grpo`: give its folder") from error


def _arm(arm: GRPOArm, found: Mapping[GRPOArm, Mapping[int, Curve]], reference: GRPOArm | None) -> ArmResult:
    against = standard_of(arm, found, reference)
    standard = found[against] if against is not None else {}
    measures = {name: compare(measure, found[arm], standard) for name, measure in MEASURES.items()}
    return ArmResult(arm, found[arm], against, measures)
