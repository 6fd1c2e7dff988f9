"""Runs arm against arm, as `rollsight compare` and the studies measure it, kept until a run changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rollsight import runs
from rollsight.analysis.intervention.arms import ArmResult, Difference, Intervention, RoundResult
from rollsight.analysis.learning_curves import Comparison, compare_runs, evaluation_curve, training_curve
from rollsight.arrays import Floats
from rollsight.explorer.tables import column, has
from rollsight.studies.curves import Curve
from rollsight.studies.metrics import Contrast, contrast

# Phases of a round that are no part of training.
_BESIDE = ("time_eval", "time_write", "time_trust")


@dataclass(frozen=True, eq=False)
class Compared:
    """The arms of one environment or model.

    Attributes:
        comparison: final returns, areas, mean curves and paired differences.
        curves: arm -> seed -> its learning curve at the rounds after training began, the mean of several runs.
        contrasts: arm -> what it saves against the baseline on common seeds; without those that have none.
    """

    comparison: Comparison
    curves: Mapping[str, Mapping[str, Curve]]
    contrasts: Mapping[str, Contrast]


@lru_cache(maxsize=16)
def compared(folders: tuple[Path, ...], tokens: tuple[str, ...], baseline: str | None) -> list[Compared]:
    """The comparisons of these runs, one for each environment.

    Args:
        folders: of the runs.
        tokens: their change tokens: with others, everything is read anew.
        baseline: the arm that the others are compared with; the first run's by default, or where it is not there.

    Raises:
        RollsightError: a run has no returns, or runs share no rounds.
    """
    opened = [runs.open(folder) for folder in folders]
    arms = {run.arm for run in opened}
    found = []
    for comparison in compare_runs(opened, baseline if baseline in arms else None):
        members = [run for run in opened if str(run.metadata.get("env", "unknown environment")) == comparison.env]
        curves = _curves(members, comparison)
        found.append(Compared(comparison, curves, _contrasts(curves, comparison.baseline)))
    return found


def interventions(folder: Path) -> dict[str, Intervention]:
    """The interventions that are kept of a run, by name; those of another form are left out."""
    found = {}
    for name, stored in runs.stored_results(folder, "intervention").items():
        try:
            found[name] = _intervention(stored)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    return found


def _curves(members: Sequence[runs.Run], comparison: Comparison) -> dict[str, dict[str, Curve]]:
    after = comparison.rounds[comparison.rounds > 0]
    by_arm: dict[str, dict[str, list[Curve]]] = {}
    for run in members:
        measured = (evaluation_curve if comparison.measure == "evaluation return" else training_curve)(run)
        assert measured is not None  # or `compare_runs` would have refused
        returns, seconds = measured.at(after.tolist()), _seconds(run, after)
        columns = {"round": after.astype(np.float64), "return": returns, "seconds": seconds}
        seed = run.metadata.get("seed")
        of_arm = by_arm.setdefault(run.arm, {})
        of_arm.setdefault(run.name if seed is None else str(seed), []).append(Curve(columns))
    return {
        arm: {
            seed: Curve({name: np.mean([one[name] for one in several], axis=0) for name in several[0].columns})
            for seed, several in seeds.items()
        }
        for arm, seeds in by_arm.items()
    }


def _seconds(run: runs.Run, rounds: np.ndarray) -> Floats:
    """(R,) seconds of training up to each round; NaN where the run does not say what training took."""
    table = run.rows("rounds")
    if not has(table, "time_train"):
        return np.full(len(rounds), np.nan)
    phases = [name for name in table.column_names if name.startswith("time_") and name not in _BESIDE]
    spent = np.cumsum(np.nansum([column(table, name) for name in phases], axis=0))
    found: Floats = spent[np.searchsorted(column(table, "round"), rounds)]
    return found


def _contrasts(curves: Mapping[str, Mapping[str, Curve]], baseline: str) -> dict[str, Contrast]:
    found, standard = {}, curves[baseline]
    for arm, seeds in curves.items():
        common = [seed for seed in seeds if seed in standard]
        if arm == baseline or not common:
            continue
        one, other = [standard[seed] for seed in common], [seeds[seed] for seed in common]
        timed = all(np.isfinite(curve["seconds"]).all() for curve in (*one, *other))
        contrasted = contrast(one, other)
        found[arm] = contrasted if timed else contrasted.without_times()
    return found


def _intervention(stored: Mapping[str, Any]) -> Intervention:
    return Intervention(
        env=str(stored["env"]),
        rule=str(stored["rule"]),
        semantic=stored["semantic"],
        target=str(stored["target"]),
        normalisation=str(stored["normalisation"]),
        orders=int(stored["orders"]),
        episodes=int(stored["episodes"]),
        seed=int(stored["seed"]),
        rounds=tuple(_round(one) for one in stored["rounds"]),
        summary={arm: _difference(one) for arm, one in stored["summary"].items()},
        over_random=_difference(stored["over_random"]),
    )


def _round(stored: Mapping[str, Any]) -> RoundResult:
    arms = {
        arm: ArmResult(
            np.array(result["returns"], np.float64),
            tuple(result["dropped"]),
            tuple(result["steps"]),
            None if result["difference"] is None else _difference(result["difference"]),
        )
        for arm, result in stored["arms"].items()
    }
    return RoundResult(int(stored["round"]), int(stored["records"]), arms)


def _difference(stored: Mapping[str, Any]) -> Difference:
    return Difference(*(_number(stored[name]) for name in ("mean", "low", "high")))


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
