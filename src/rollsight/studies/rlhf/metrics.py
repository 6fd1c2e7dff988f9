"""What is measured of an arm's curves: ends, rewards at equal KL, and what the paper measures, each against PPO's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rollsight.analysis.learning_curves import Interval, final_return, t_interval
from rollsight.studies.curves import Curve, Floats
from rollsight.studies.paper import metrics

ENDS = ("return", "toxicity", "kl", "distinct_1", "distinct_2", "length", "empty")
_LEVELS = 4


@dataclass(frozen=True)
class Compared:
    """A mean over seeds, and the paired difference to PPO on common seeds; None where there is none."""

    value: Interval
    difference: Interval | None


def end(curve: Curve, name: str) -> float:
    """A column's mean over the evaluations of the last tenth of the rounds, at least the last one."""
    return final_return(curve["round"].astype(np.int64), curve[name])


def at_kl(curve: Curve, level: float) -> float:
    """The reward when the KL to the start first reached `level`, linear between evaluations; nan where it never did.

    curve: with the evaluation before training, where the KL is 0.
    """
    kl, reward = curve["kl"], curve["return"]
    reached = np.flatnonzero(kl >= level)
    if not len(reached):
        return float("nan")
    i = int(reached[0])
    return float(reward[0] if i == 0 else np.interp(level, kl[i - 1 : i + 1], reward[i - 1 : i + 1]))


def common_levels(curves: Sequence[Curve]) -> Floats:
    """(4,) levels of KL that all these curves reach: quarters of the lowest of their highest KLs."""
    return np.linspace(0, min(curve["kl"].max() for curve in curves), _LEVELS + 1)[1:]


def after_start(curve: Curve) -> Curve:
    """Without the evaluation before training."""
    return curve.at(curve["round"] > 0)


def compared(values: Sequence[float], pairs: Sequence[tuple[float, float]]) -> Compared:
    """values: of an arm's seeds; pairs: (PPO's, the arm's) of the common seeds."""
    return Compared(t_interval(values), t_interval([mine - standard for standard, mine in pairs]) if pairs else None)


def savings(standard: Sequence[Curve], other: Sequence[Curve]) -> metrics.Contrast:
    """Rounds and time to PPO's best reward, as in the paper's study; curves of the same seeds and rounds."""
    return metrics.contrast(*([after_start(curve) for curve in curves] for curves in (standard, other)))
