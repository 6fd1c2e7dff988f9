"""The study as a picture and as one page: accuracy, rewards and what is kept, by round."""

from __future__ import annotations

from pathlib import Path

from rollsight.studies import plots
from rollsight.studies.arms import used
from rollsight.studies.curves import after_start
from rollsight.studies.grpo.arms import KINDS
from rollsight.studies.grpo.results import Results

_EVALUATED = {"accuracy": "accuracy of sampled answers", "greedy": "accuracy without sampling"}
_SINCE = {"train_reward": "mean reward of training completions", "kept": "share of the completions kept"}


def axes(results: Results) -> list[plots.Axes]:
    """What is evaluated from the start on, and means over the rounds up to each evaluation."""
    evaluated = {
        name: [plots.by_round(one.arm, one.arm.kind_number, one.curves.values(), name) for one in results.arms]
        for name in _EVALUATED
    }
    since = {
        name: [
            plots.by_round(one.arm, one.arm.kind_number, map(after_start, one.curves.values()), name)
            for one in results.arms
        ]
        for name in _SINCE
    }
    return [plots.Axes("round", title, (evaluated | since)[name]) for name, title in (_EVALUATED | _SINCE).items()]


def draw(results: Results, path: Path) -> Path:
    """All plots as one picture.

    Raises:
        RollsightError: the file cannot be written.
    """
    return plots.draw(axes(results), path, 2, (12.0, 8.0))


def write(results: Results, path: Path) -> Path:
    """The same as a page.

    Raises:
        RollsightError: the file cannot be written.
    """
    kinds = used(KINDS, {one.arm.kind for one in results.arms})
    return plots.write(plots.panels(axes(results)), path, "GRPO with influence-based filtering", kinds)
