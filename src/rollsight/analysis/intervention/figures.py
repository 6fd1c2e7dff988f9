"""Pictures of an intervention: box plots of the difference in return."""

from __future__ import annotations

from typing import Any

from rollsight.analysis.drawing import new_figure
from rollsight.analysis.intervention.arms import Intervention
from rollsight.analysis.intervention.labels import COLOURS, changes, place
from rollsight.escaping import plain_label


def boxes(result: Intervention) -> Any:
    """Box plots of the difference in return: by round over episodes, and by arm over rounds and orders."""
    arms, rounds = list(result.summary), len(result.rounds)
    figure = new_figure(4.6 + min(14.0, 0.9 * rounds + 2), 4.2)
    left, right = figure.subplots(1, 2, width_ratios=[max(2.0, 0.6 * rounds), 1.4])
    for index, arm in enumerate(arms):
        colour = COLOURS[arm]
        style: dict[str, Any] = {
            "patch_artist": True,
            "boxprops": {"facecolor": colour, "alpha": 0.35, "edgecolor": colour},
            "medianprops": {"color": colour, "linewidth": 1.6},
            "whiskerprops": {"color": colour},
            "capprops": {"color": colour},
            "flierprops": {"marker": ".", "markersize": 3, "markeredgecolor": colour, "alpha": 0.5},
        }
        by_round = changes(result, arm)
        places = [place(index, len(arms), number) for number in range(rounds)]
        left.boxplot([change.mean(0) for change in by_round], positions=places, widths=0.68 / len(arms), **style)
        known = [one.arms[arm].difference for one in result.rounds]
        means = [d.mean for d in known if d is not None]
        error = [[d.mean - d.low for d in known if d is not None], [d.high - d.mean for d in known if d is not None]]
        left.errorbar(places, means, error, fmt="D", color="black", markersize=3, linewidth=1, zorder=3)
        right.boxplot([[float(x) for c in by_round for x in c.mean(1)]], positions=[index], widths=0.6, **style)
    left.set_xticks(range(rounds), [str(one.round) for one in result.rounds])
    left.set(xlabel="round", ylabel="difference in return\nto the unfiltered replay")
    left.set_title(f"{plain_label(result.env)}: by episode; mean and 95 % interval", fontsize=10)
    right.set_xticks(range(len(arms)), arms)
    right.set_title("means by round and order", fontsize=10)
    for axes in (left, right):
        axes.axhline(0, color="black", linewidth=0.8, linestyle=":")
        axes.grid(axis="y", alpha=0.3)
    return figure
