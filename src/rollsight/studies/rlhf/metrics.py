"""What is measured of an arm's curves: ends, rewards at equal KL, and what the paper measures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollsight.arrays import Floats
from rollsight.studies import metrics
from rollsight.studies.curves import Curve, after_start

PHASES = ("generate", "reward", "log_probs", "score", "train")  # of a round, whose processor seconds are measured
ENDS = ("return", "toxicity", "kl", "distinct_1", "distinct_2", "length", "empty")
_LEVELS = 4


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


def savings(standard: Sequence[Curve], other: Sequence[Curve]) -> metrics.Contrast:
    """Rounds and time to PPO's best reward, as in the paper's study; curves of the same seeds and rounds."""
    return metrics.contrast(*([after_start(curve) for curve in curves] for curves in (standard, other)))
