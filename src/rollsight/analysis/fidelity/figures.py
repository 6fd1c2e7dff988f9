"""Pictures of a round's fidelity: the LDS of every score, and the removal curves."""

from __future__ import annotations

from typing import Any

from rollsight.analysis.drawing import BLUE, GREEN, GREY, RED, new_figure
from rollsight.analysis.fidelity.labels import OUTCOMES
from rollsight.analysis.fidelity.measure import Fidelity
from rollsight.escaping import plain_label


def overview(result: Fidelity) -> Any:
    """The LDS of every score with interval, ceiling and null band, and the removal curves."""
    shown = list(result.lds)
    figure = new_figure(4.2 * (len(shown) + 1), 4.2)
    *panels, last = figure.subplots(1, len(shown) + 1)
    for index, (axes, (outcome, table)) in enumerate(zip(panels, result.lds.items(), strict=True)):
        names, rows = list(table.rows), table.rows.values()
        places = range(len(names), 0, -1)
        error = [[row.lds - row.low for row in rows], [row.high - row.lds for row in rows]]
        axes.axvspan(table.null_low, table.null_high, color=GREY, alpha=0.35, linewidth=0, label="null band")
        axes.axvline(table.ceiling, color=GREEN, linestyle="--", label="ceiling")
        axes.errorbar([row.lds for row in rows], places, xerr=error, fmt="o", color=BLUE, markersize=4, capsize=2)
        axes.set_yticks(places, [plain_label(name) for name in names] if index == 0 else [""] * len(names))
        axes.set(xlabel="LDS", title=OUTCOMES[outcome], xlim=(-1, 1))
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    removal = result.removal["fresh"]
    at = [one.fraction for one in removal]
    low, high = [one.random_low for one in removal], [one.random_high for one in removal]
    last.fill_between(at, low, high, color=GREY, alpha=0.35, linewidth=0)
    last.plot(at, [one.random for one in removal], color=GREY, label="random")
    last.plot(at, [one.lowest for one in removal], "o-", color=RED, label="lowest scores")
    last.plot(at, [one.highest for one in removal], "o-", color=BLUE, label="highest scores")
    last.set(xlabel=f"share of the {plain_label(result.unit)}s left out", title="change of the target, fresh buffer")
    last.legend(frameon=False, fontsize=8)
    for axes in (*panels, last):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{plain_label(result.env)}, round {result.round} ({result.semantic}, {result.counterfactual})")
    return figure
