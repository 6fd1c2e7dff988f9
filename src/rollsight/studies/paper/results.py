"""What a study's folder holds, put together: every arm on its own, against its standard and against the paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rollsight.errors import RollsightError
from rollsight.studies.curves import Curve, after_start
from rollsight.studies.paper.arms import KINDS, Arm, arm_in
from rollsight.studies.paper.metrics import (
    Contrast,
    Null,
    Summary,
    contrast,
    estimate_of,
    null_of,
    summarise,
)
from rollsight.studies.paper.study import named
from rollsight.studies.results import ArmCurves, read_curves, row, write_table
from rollsight.training.paper import paper, settings_for

_CHARGED = ("collect", "score", "train")  # phases that count as training time

# Collecting is the same work in every arm. Where its time differs by more than this factor, the arms ran on different
# machines, or under different loads, and their times say nothing of each other.
_SAME_PACE = 1.25


@dataclass(frozen=True, eq=False)
class ArmResult(ArmCurves[Arm]):
    """One arm on one environment, over the rounds that all its curves have.

    summary: the arm on its own.
    contrast: with the arm it is compared with, by default plain PPO with the same options; None where there is none, or
        it is that arm.
    """

    summary: Summary
    contrast: Contrast | None

    @property
    def diverged(self) -> int:
        """Runs that ended in parameters that are not finite."""
        return sum(bool(np.isnan(curve["update_norm"][-1])) for curve in self.curves.values())


@dataclass(frozen=True, eq=False)
class EnvResult:
    """All arms on one environment.

    env: name of the environment.
    arms: the arms.
    nulls: of each arm that others are compared with.
    """

    env: str
    arms: list[ArmResult]
    nulls: Mapping[Arm, Null]


def read_results(folder: Path, against: Arm | None = None) -> list[EnvResult]:
    """The study in a folder, as far as it has come. Arms are compared with their own PPO, or all `against` one arm.

    Raises:
        RollsightError: there is no curve in it, or none to compare `against`, or curves of one environment have
            different schedules.
    """
    envs = [env for env in paper() if (folder / env).is_dir()]
    results = [_environment(folder, env, against) for env in envs]
    if not any(result.arms for result in results):
        raise RollsightError(f"{folder} holds no curves of a study; run `rollsight study paper --out {folder}` first.")
    if against is None:
        return [result for result in results if result.arms]
    compared = [result for result in results if any(one.contrast for one in result.arms)]
    if not compared:
        raise RollsightError(f"{folder} holds nothing to compare with {against}; choose an arm that it holds.")
    return compared


def write_csv(results: list[EnvResult], path: Path) -> None:
    """Every figure in one long table: env, arm, seeds, against, measure, value, low, high."""
    write_table(
        path,
        [
            {"env": result.env, "arm": one.arm, "seeds": one.summary.seeds, "against": one.against, **figure}
            for result in results
            for one in result.arms
            for figure in _figures(one)
        ],
    )


def _environment(folder: Path, env: str, reference: Arm | None) -> EnvResult:
    found = {arm_in(path.name): _curves(path) for path in sorted((folder / env).iterdir()) if path.is_dir()}
    found = {arm: curves for arm, curves in found.items() if curves}
    schedules = {tuple(curve["round"]) for curves in found.values() for curve in curves.values()}
    if len(schedules) > 1:
        raise RollsightError(
            f"{folder / env} has curves of {len(schedules)} different schedules (a quick and a full study, perhaps); "
            "keep each in a folder of its own."
        )
    arms, nulls = list[ArmResult](), dict[Arm, Null]()
    for arm, curves in sorted(found.items(), key=lambda item: _place(item[0])):
        choices = _standards(arm) if reference is None else [named(reference, settings_for(env))]
        against = next((one for one in choices if one in found and one != arm), None)
        compared = None
        if against is not None:
            common = [seed for seed in curves if seed in found[against]]
            if common:
                pairs = [(found[against][seed], curves[seed]) for seed in common]
                compared = contrast(*zip(*pairs, strict=True))
                if not _same_pace(pairs):
                    compared = compared.without_times()
            if against not in nulls and (null := null_of(list(found[against].values()))) is not None:
                nulls[against] = null
        arms.append(ArmResult(arm, curves, against, summarise(list(curves.values())), compared))
    return EnvResult(env, arms, nulls)


def _same_pace(pairs: Sequence[tuple[Curve, Curve]]) -> bool:
    """Whether the standard's and the other's times can be compared. The median over seeds: a run that was lost at once
    has collected little."""
    ratio = np.median([other["collect_s"][-1] / max(standard["collect_s"][-1], 1e-9) for standard, other in pairs])
    return bool(1 / _SAME_PACE <= ratio <= _SAME_PACE)


def _curves(folder: Path) -> dict[int, Curve]:
    """The curves of an arm, without the evaluation before training."""
    return {seed: after_start(curve) for seed, curve in read_curves(folder, _CHARGED).items()}


def _standards(arm: Arm) -> list[Arm]:
    """Plain PPO with the same options, or, for other options of PPO itself, PPO as the paper has it."""
    return [] if arm == Arm("ppo") else [replace(arm, kind="ppo", p=None), Arm("ppo")]


def _place(arm: Arm) -> tuple[object, ...]:
    """Arms with the same options together, the standard first."""
    options = str(replace(arm, kind="ppo", p=None)) != "ppo"
    return options, str(replace(arm, kind="ppo", p=None)), list(KINDS).index(arm.kind), arm.p or 0.0


def _figures(one: ArmResult) -> Iterator[dict[str, object]]:
    summary, compared = one.summary, one.contrast
    found = {"final": estimate_of(summary.final), "area": estimate_of(summary.area)}
    found |= {"final_iqm": summary.final_iqm, "area_iqm": summary.area_iqm}
    if compared is not None:
        found |= {"final_gain": estimate_of(compared.final), "area_gain": estimate_of(compared.area)}
        found["probability"] = compared.probability
    for measure, estimate in found.items():
        yield row(measure, estimate.value, estimate.low, estimate.high)
    if compared is not None:
        yield from compared.rows()
