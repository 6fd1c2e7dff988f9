"""The study as a picture and as one page: each measure by round, and the reward against the KL, with bands."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rollsight.studies import plots as shared
from rollsight.studies.plots import Axes, Line
from rollsight.studies.rlhf.metrics import at_kl
from rollsight.studies.rlhf.results import ArmResult, Results

_BY_ROUND = {
    "return": "mean reward of held-out prompts",
    "toxicity": "toxicity, by the probe",
    "kl": "KL to the start, nats per completion",
    "distinct_2": "different word pairs per word pair",
    "length": "tokens per completion",
}
_POINTS = 25  # of a line over KL


def plots(results: Results) -> list[Axes]:
    """The measures by round, and the reward over the KLs that all seeds of an arm reached."""
    by_round = [
        Axes("round", title, [_by_round(one, name) for one in results.arms]) for name, title in _BY_ROUND.items()
    ]
    against = Axes("KL to the start, nats per completion", _BY_ROUND["return"], [_over_kl(one) for one in results.arms])
    return [by_round[0], against, *by_round[1:]]


def pictures(results: Results, folder: Path) -> list[Path]:
    """All plots as one picture, and as a page.

    Raises:
        RollsightError: a file cannot be written.
    """
    title = "Language models with influence-based filtering"
    return shared.write_both(plots(results), folder, 3, (15.0, 8.4), title, [one.arm for one in results.arms])


def _by_round(one: ArmResult, name: str) -> Line:
    return shared.by_round(one.arm, one.curves.values(), name)


def _over_kl(one: ArmResult) -> Line:
    curves = list(one.curves.values())
    levels = np.linspace(0, min(curve["kl"].max() for curve in curves), _POINTS)
    rows = [np.array([at_kl(curve, level) for level in levels.tolist()]) for curve in curves]
    return shared.line(one.arm, levels, rows)
