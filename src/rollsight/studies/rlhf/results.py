"""What a study's folder holds, put together: every arm on its own and against its PPO."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.studies.curves import Curve, Floats, files_by_seed, mean_of, read_curve, seconds_per_round
from rollsight.studies.paired import Compared, after_start, compared, end, figures
from rollsight.studies.paper.metrics import MEASURES, Contrast
from rollsight.studies.rlhf import metrics, probe
from rollsight.studies.rlhf.arms import KINDS, Arm, arm_of
from rollsight.studies.rlhf.cell import PHASES, PROBE


@dataclass(frozen=True, eq=False)
class ArmResult:
    """One arm: its curves by seed, over the rounds that all curves of the study have.

    ends: by name of a column; at_kl: one for each of the study's levels; against: PPO with the same learning rate, else
    plain PPO, None for PPO itself and where there is none; savings: rounds and time against it.
    """

    arm: Arm
    curves: Mapping[int, Curve]
    ends: Mapping[str, Compared]
    at_kl: Sequence[Compared]
    against: Arm | None
    savings: Contrast | None

    @property
    def rounds(self) -> int:
        """Of training, at the last common evaluation."""
        return int(next(iter(self.curves.values()))["round"][-1])

    def mean(self, name: str) -> float:
        """A column's mean over evaluations after the start, and seeds."""
        return mean_of(map(after_start, self.curves.values()), name)

    def seconds(self, phase: str) -> float:
        """Processor seconds of a phase per round."""
        return seconds_per_round(self.curves.values(), phase)


@dataclass(frozen=True, eq=False)
class Results:
    """The study: arms, levels (L,) of KL that every run reaches, ends before training, and the probe's quality.

    settings: of the runs, as their folder has them, without what belongs to an arm.
    """

    arms: list[ArmResult]
    levels: Floats
    start: Mapping[str, float]
    quality: Mapping[str, float]
    settings: Mapping[str, Any]


def read_results(folder: Path) -> Results:
    """The study in a folder, as far as its runs are done.

    Raises:
        RollsightError: there is no curve in it, or its curves share no rounds.
    """
    names = sorted(path.parent.name for path in folder.glob("*/*.csv"))
    found = {arm: _curves(folder / str(arm)) for arm in sorted(map(arm_of, dict.fromkeys(names)), key=_place)}
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
    started = [path.with_suffix("") for path in sorted(folder.glob("*/*.csv")) if runs.is_run(path.with_suffix(""))]
    if not started:
        raise RollsightError(f"{folder} holds curves without their run folders: give the folder that the study wrote")
    settings = runs.open(started[0]).metadata["run_settings"]
    arms = [_arm(arm, found, levels) for arm in found]
    return Results(arms, levels, start, probe.load(folder / PROBE).quality, settings)


def write_csv(results: Results, path: Path) -> None:
    """Every figure in one long table: arm, seeds, measure, value, low, high; differences are named so."""
    with runs.whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("arm", "seeds", "against", "measure", "value", "low", "high"))
        for one in results.arms:
            for measure, *numbers in _figures(one, results.levels):
                row = ["" if np.isnan(number) else f"{number:.5g}" for number in numbers]
                writer.writerow((one.arm, len(one.curves), one.against or "", measure, *row))


def _arm(arm: Arm, found: Mapping[Arm, Mapping[int, Curve]], levels: Floats) -> ArmResult:
    curves = found[arm]
    against = _standard_of(arm, found)
    standard = found[against] if against is not None else {}
    seeds = [seed for seed in curves if seed in standard]

    def compare(measure: Any) -> Compared:
        values = {seed: measure(curve) for seed, curve in curves.items()}
        return compared(list(values.values()), [(measure(standard[s]), values[s]) for s in seeds])

    ends = {name: compare(lambda curve, name=name: end(curve, name)) for name in metrics.ENDS}
    at_kl = [compare(lambda curve, level=level: metrics.at_kl(curve, level)) for level in levels.tolist()]
    saved = metrics.savings([standard[s] for s in seeds], [curves[s] for s in seeds]) if seeds else None
    return ArmResult(arm, curves, ends, at_kl, against, saved)


def _curves(folder: Path) -> dict[int, Curve]:
    return {seed: read_curve(path, PHASES) for seed, path in files_by_seed(folder).items()}


def _standard_of(arm: Arm, found: Mapping[Arm, object]) -> Arm | None:
    choices = (Arm("ppo", lr=arm.lr), Arm("ppo"))
    return next((one for one in choices if one in found and one != arm), None)


def _place(arm: Arm) -> tuple[float, ...]:
    """Arms of one learning rate together, the study's first, PPO before the others."""
    return arm.lr or 0.0, list(KINDS).index(arm.kind), -arm.p


def _figures(one: ArmResult, levels: Floats) -> Iterator[tuple[str, float, float, float]]:
    named = {f"final_{name}": found for name, found in one.ends.items()}
    named |= {f"return_at_kl_{level:.3g}": found for level, found in zip(levels, one.at_kl, strict=True)}
    yield from figures(named)
    if one.savings is not None:
        for measure in MEASURES:
            pairs, curve = one.savings.pairs[measure], one.savings.mean_curve[measure]
            yield f"{measure}_pairs", pairs.value, pairs.low, pairs.high
            yield f"{measure}_mean_curve", curve.value, curve.low, curve.high
