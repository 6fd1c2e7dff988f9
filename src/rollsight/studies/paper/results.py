"""What a study's folder holds, put together: every arm on its own, against its standard and against the paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rollsight.errors import RollsightError
from rollsight.studies.arms import standard_of
from rollsight.studies.curves import Curve, after_start
from rollsight.studies.metrics import Contrast, Null, Summary, contrast, null_of, summarise
from rollsight.studies.ppo_arms import PPOArm
from rollsight.studies.results import ArmCurves, row
from rollsight.studies.store import stored
from rollsight.training.paper import paper, settings_for

KEYS = ("env", "arm", "seed")
_CHARGED = ("collect", "score", "train")  # phases that count as training time

# Collecting is the same work in every arm. Where its time differs by more than this factor, the arms ran on different
# machines, or under different loads, and their times say nothing of each other.
_SAME_PACE = 1.25


@dataclass(frozen=True, eq=False)
class ArmResult(ArmCurves[PPOArm]):
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
    nulls: Mapping[PPOArm, Null]


def read_results(folder: Path, against: PPOArm | None = None) -> list[EnvResult]:
    """The study in a folder, as far as it has come. Arms are compared with their own PPO, or all `against` one arm.

    Raises:
        RollsightError: there is no curve in it, or none to compare `against`, or curves of one environment have
            different schedules.
    """
    found = dict[str, dict[PPOArm, dict[int, Curve]]]()
    for (env, arm, seed), columns in stored(folder, KEYS).items():
        curve = after_start(Curve.of(columns, _CHARGED))
        found.setdefault(str(env), {}).setdefault(PPOArm.of(str(arm)), {})[int(seed)] = curve
    results = [_environment(folder, env, found[env], against) for env in paper() if env in found]
    if not results:
        raise RollsightError(f"{folder} holds no curves of a study; run `rollsight study paper --out {folder}` first.")
    if against is None:
        return results
    compared = [result for result in results if any(one.contrast for one in result.arms)]
    if not compared:
        raise RollsightError(f"{folder} holds nothing to compare with {against}; choose an arm that it holds.")
    return compared


def rows(results: Sequence[EnvResult]) -> Iterator[dict[str, object]]:
    """Every figure in one long table: env, arm, seeds, against, measure, value, low, high."""
    for result in results:
        for one in result.arms:
            of = {"env": result.env, "arm": one.arm, "seeds": one.summary.seeds, "against": one.against}
            yield from (of | figure for figure in _figures(one))


def _environment(
    folder: Path, env: str, found: Mapping[PPOArm, Mapping[int, Curve]], reference: PPOArm | None
) -> EnvResult:
    schedules = {tuple(curve["round"]) for curves in found.values() for curve in curves.values()}
    if len(schedules) > 1:
        raise RollsightError(
            f"{folder} has curves of {len(schedules)} different schedules on {env} (a quick and a full study, "
            "perhaps); keep each in a folder of its own."
        )
    arms, nulls = list[ArmResult](), dict[PPOArm, Null]()
    chosen = None if reference is None else reference.named(settings_for(env))
    for arm, curves in sorted(found.items(), key=lambda item: item[0].place):
        against, compared = standard_of(arm, found, chosen), None
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


def _figures(one: ArmResult) -> Iterator[dict[str, object]]:
    summary, compared = one.summary, one.contrast
    found = {"final": summary.final, "area": summary.area}
    found |= {"final_iqm": summary.final_iqm, "area_iqm": summary.area_iqm}
    if compared is not None:
        found |= {"final_gain": compared.final, "area_gain": compared.area, "probability": compared.probability}
    yield from (row(measure, interval) for measure, interval in found.items())
    if compared is not None:
        yield from compared.rows()
