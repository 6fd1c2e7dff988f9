"""What the round table says without the records, as one reads it in any trainer's log: KL divergence, clip fraction,
entropy, explained variance, ends of episodes, mean return."""

from __future__ import annotations

import numpy as np

from rollsight.doctor.check import Check, Measured
from rollsight.doctor.evidence import Evidence
from rollsight.doctor.examination import CHECKS


def explained_variance(seen: Evidence) -> Measured | None:
    """1 less the median explained variance of the second half of the rounds: above 1 where the returns' mean would do
    better than the values. (After ten rounds many healthy runs explain nothing yet.)"""
    explained = seen.summary("explained_variance")
    if len(explained) < 6:
        return None
    late = float(np.nanmedian(explained[len(explained) // 2 :]))
    return Measured(1 - late, {"explained": late})


EXPLAINED_VARIANCE = Check(
    "explained_variance", "value_function", explained_variance, 1.1, np.inf, "likely",
    "The value function explains {explained:.0%} of the spread of the returns.",
    ("the value function does not learn",), ("check that the value loss falls",), records=False,
)  # fmt: skip
BASELINE = (*(check for check in CHECKS if not check.records), EXPLAINED_VARIANCE)
