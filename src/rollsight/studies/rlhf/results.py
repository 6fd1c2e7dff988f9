"""What a study's folder holds, put together: every arm on its own and against its PPO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np

from rollsight.arrays import Floats
from rollsight.errors import RollsightError
from rollsight.studies.arms import standard_of
from rollsight.studies.curves import Curve
from rollsight.studies.metrics import Contrast
from rollsight.studies.paired import Compared, compare, end, figures
from rollsight.studies.results import ArmCurves, read_arms
from rollsight.studies.rlhf import metrics, probe
from rollsight.studies.rlhf.arms import RLHFArm
from rollsight.studies.settings import stored_settings


@dataclass(frozen=True, eq=False)
class ArmResult(ArmCurves[RLHFArm]):
    """One arm, over the rounds that all curves of the study have, against PPO with the same learning rate, else plain
    PPO, or against a given arm.

    ends: by name of a column, its value after the last round.
    at_kl: reward at each of the study's levels of KL.
    savings: of rounds and time; None where there is nothing to compare with.
    """

    ends: Mapping[str, Compared]
    at_kl: Sequence[Compared]
    savings: Contrast | None

    @property
    def rounds(self) -> int:
        """Of training, at the last common evaluation."""
        return int(next(iter(self.curves.values()))["round"][-1])


@dataclass(frozen=True, eq=False)
class Results:
    """The study.

    arms: its arms.
    levels: (L,) of KL that every run reaches.
    start: columns before training.
    quality: of the probe, by name.
    settings: that the runs share.
    standard: what differences are to.
    """

    arms: list[ArmResult]
    levels: Floats
    start: Mapping[str, float]
    quality: Mapping[str, float]
    settings: Mapping[str, Any]
    standard: str


def read_results(folder: Path, against: RLHFArm | None = None) -> Results:
    """The study in a folder, as far as its runs are done. Arms are compared with their own PPO, or all `against` one.

    Raises:
        RollsightError: there is no curve in it, or none of `against`, or its curves share no rounds.
    """
    found = read_arms(folder, RLHFArm, metrics.PHASES, against)
    if not found:
        raise RollsightError(f"{folder} holds no curves of a study: run `rollsight study rlhf --out {folder}` first")
    everyone = [curve for curves in found.values() for curve in curves.values()]
    common = reduce(np.intersect1d, [curve["round"] for curve in everyone])
    if not common.max(initial=0):
        raise RollsightError(f"the curves in {folder} share no evaluated rounds: keep each study in its own folder")
    found = {
        arm: {seed: curve.at(np.isin(curve["round"], common)) for seed, curve in curves.items()}
        for arm, curves in found.items()
    }
    everyone = [curve for curves in found.values() for curve in curves.values()]
    levels = metrics.common_levels(everyone)
    start = {name: float(np.mean([curve[name][0] for curve in everyone])) for name in metrics.ENDS}
    arms = [_arm(arm, found, levels, against) for arm in found]
    standard = "PPO" if against is None else f"`{against}`"
    return Results(
        arms, levels, start, probe.load(folder / probe.PROBE).quality, stored_settings(folder, "rlhf"), standard
    )


def rows(results: Results) -> Iterator[dict[str, object]]:
    """Every figure in one long table: arm, seeds, against, measure, value, low, high; differences are named so."""
    for one in results.arms:
        yield from (one.named | figure for figure in _figures(one, results.levels))


def _arm(
    arm: RLHFArm, found: Mapping[RLHFArm, Mapping[int, Curve]], levels: Floats, reference: RLHFArm | None
) -> ArmResult:
    curves = found[arm]
    against = standard_of(arm, found, reference)
    standard = found[against] if against is not None else {}
    ends = {name: compare(partial(end, name=name), curves, standard) for name in metrics.ENDS}
    at_kl = [compare(partial(metrics.at_kl, level=level), curves, standard) for level in levels.tolist()]
    common = [seed for seed in curves if seed in standard]
    saved = metrics.savings([standard[s] for s in common], [curves[s] for s in common]) if common else None
    return ArmResult(arm, curves, against, ends, at_kl, saved)


def _figures(one: ArmResult, levels: Floats) -> Iterator[dict[str, object]]:
    named = {f"final_{name}": found for name, found in one.ends.items()}
    named |= {f"return_at_kl_{level:.3g}": found for level, found in zip(levels, one.at_kl, strict=True)}
    yield from figures(named)
    if one.savings is not None:
        yield from one.savings.rows()
