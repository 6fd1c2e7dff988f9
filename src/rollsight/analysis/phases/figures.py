"""Pictures of a behaviour's development over the rounds."""

from __future__ import annotations

from typing import Any

import numpy as np

from rollsight.analysis.drawing import BLUE, GREY, RED, SHADES, new_figure
from rollsight.analysis.phases.formation import Development, Formation
from rollsight.analysis.phases.labels import frame, rough_rounds
from rollsight.escaping import plain_label

_MAPS = 4


def course(result: Development, title: str) -> Any:
    """pi, roughness with its band, the phases, and where the top records lie in four of the rounds."""
    numbers = [one.round for one in result.rounds]
    figure = new_figure(9.6, 8.2)
    grid = figure.add_gridspec(3, _MAPS, height_ratios=[1, 1, 1.15])
    likely, rough = figure.add_subplot(grid[0, :]), figure.add_subplot(grid[1, :])
    likely.plot(numbers, np.exp([one.log_prob for one in result.rounds]), color=BLUE, marker=".")
    likely.set(ylabel="pi(a|s)")
    likely.margins(y=0.15)  # room for the phases' names
    likely.set_title(plain_label(title), fontsize=11)
    where, values, low, high = rough_rounds(result.rounds)
    rough.fill_between(where, low, high, color=GREY, alpha=0.35, linewidth=0, label="influences permuted, 95 %")
    rough.plot(where, values, color=RED, marker=".", label="roughness")
    rough.set(xlabel="round", ylabel="roughness")
    rough.set_ylim(bottom=0)
    rough.legend(frameon=False, fontsize=8)
    for axes in (likely, rough):
        for phase, shade in zip(result.phases, SHADES, strict=False):
            axes.axvspan(phase.first - 0.5, phase.last + 0.5, color=shade, alpha=0.8, linewidth=0, zorder=0)
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
    for phase in result.phases:
        middle = (phase.first + phase.last) / 2
        likely.annotate(phase.name, (middle, 0.97), xycoords=likely.get_xaxis_transform(), ha="center", va="top")
    if not result.phases:
        likely.annotate("no phases supported", (0.5, 0.97), xycoords="axes fraction", ha="center", va="top", color=GREY)
    for column, one in enumerate(_spread(result.rounds)):
        axes = figure.add_subplot(grid[2, column])
        _draw_map(axes, result, one)
        if column == 0:
            axes.set_ylabel("states, first two PCs\nof the embedding", fontsize=8)
            axes.set_xlabel("red: top records, star: the behaviour, grey: sample", fontsize=7, loc="left")
    return figure


def _draw_map(axes: Any, result: Development, one: Formation) -> None:
    axes.scatter(one.background[:, 0], one.background[:, 1], s=4, color="#bbbbbb", linewidths=0)
    axes.scatter(one.places[:, 0], one.places[:, 1], s=20, color=RED, alpha=0.8, linewidths=0)
    star = {"marker": "*", "color": BLUE, "edgecolors": "white", "linewidths": 0.6}
    axes.scatter(result.place[0], result.place[1], s=90, **star)
    across, up = frame(result)
    axes.set(xlim=across, ylim=up, xticks=[], yticks=[])
    axes.set_title(f"round {one.round}", fontsize=9)


def _spread(rounds: list[Formation]) -> list[Formation]:
    """Up to four rounds, from the first to the last."""
    places = np.unique(np.linspace(0, len(rounds) - 1, _MAPS).round().astype(int))
    return [rounds[place] for place in places]
