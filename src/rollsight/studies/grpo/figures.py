"""The study as a picture and as one page: accuracy, rewards and what is kept, by round."""

from __future__ import annotations

from pathlib import Path

from rollsight.studies import plots
from rollsight.studies.curves import after_start
from rollsight.studies.grpo.results import Results

_EVALUATED = {"accuracy": "accuracy of sampled answers", "greedy": "accuracy without sampling"}
_SINCE = {"train_reward": "mean reward of training completions", "kept": "share of the completions kept"}


def axes(results: Results) -> list[plots.Axes]:
    """What is evaluated from the start on, and means over the rounds up to each evaluation."""
    found = list[plots.Axes]()
    for name, title in (_EVALUATED | _SINCE).items():
        lines = list[plots.Line]()
        for one in results.arms:
            curves = one.curves.values() if name in _EVALUATED else map(after_start, one.curves.values())
            lines.append(plots.by_round(one.arm, curves, name))
        found.append(plots.Axes("round", title, lines))
    return found


def pictures(results: Results, folder: Path) -> list[Path]:
    """All plots as one picture, and as a page.

    Raises:
        RollsightError: a file cannot be written.
    """
    arms = [one.arm for one in results.arms]
    return plots.write_both(axes(results), folder, 2, (12.0, 8.0), "GRPO with influence-based filtering", arms)
