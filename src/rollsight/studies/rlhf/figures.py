"""The study as a picture and as one page: each measure by round, and the reward against the KL, with bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.colors import qualitative

from rollsight.analysis.drawing import new_figure, save_figure
from rollsight.analysis.learning_curves import band
from rollsight.analysis.page import Panel, dress, write_page
from rollsight.studies.curves import Floats
from rollsight.studies.rlhf.arms import KINDS
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


@dataclass(frozen=True, eq=False)
class Line:
    """An arm's mean over seeds and the half-width of its 95 % band, (n,) each, over x; 0 for one seed."""

    name: str
    colour: str
    x: Floats
    mean: Floats
    half: Floats


@dataclass(frozen=True, eq=False)
class Axes:
    """One plot: what its axes show, and its lines."""

    x: str
    y: str
    lines: list[Line]


def plots(results: Results) -> list[Axes]:
    """The measures by round, and the reward over the KLs that all seeds of an arm reached."""
    by_round = [
        Axes("round", title, [_by_round(one, name) for one in results.arms]) for name, title in _BY_ROUND.items()
    ]
    against = Axes("KL to the start, nats per completion", _BY_ROUND["return"], [_over_kl(one) for one in results.arms])
    return [by_round[0], against, *by_round[1:]]


def draw(results: Results, path: Path) -> Path:
    """All plots as one picture.

    Raises:
        RollsightError: the file cannot be written.
    """
    found = plots(results)
    figure = new_figure(15.0, 8.4)
    for index, plot in enumerate(found):
        axes = figure.add_subplot(2, (len(found) + 1) // 2, index + 1)
        for line in plot.lines:
            axes.plot(line.x, line.mean, label=line.name, color=line.colour, linewidth=1.6)
            axes.fill_between(
                line.x, line.mean - line.half, line.mean + line.half, color=line.colour, alpha=0.15, linewidth=0
            )
        axes.set(xlabel=plot.x, ylabel=plot.y)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def write(results: Results, path: Path) -> Path:
    """The same as a page, arms switched on and off in the legends.

    Raises:
        RollsightError: the file cannot be written.
    """
    caption = "Mean over seeds with its 95 % band; click an arm in the legend to hide it, twice to see it alone."
    panels = [
        Panel(f"plot{index}", f"{plot.y} by {plot.x.partition(' ')[0]}", caption, _page(plot))
        for index, plot in enumerate(plots(results))
    ]
    used = {one.arm.kind for one in results.arms}
    lead = "Each arm: " + "; ".join(f"{kind}: {text}" for kind, text in KINDS.items() if kind in used) + "."
    return write_page(path, "Language models with influence-based filtering", lead, panels)


def _page(plot: Axes) -> go.Figure:
    figure = go.Figure()
    for line in plot.lines:
        low, high = line.mean - line.half, line.mean + line.half
        figure.add_scatter(
            x=[*line.x, *line.x[::-1]], y=[*high, *low[::-1]], fill="toself", opacity=0.15, hoverinfo="skip",
            line={"width": 0, "color": line.colour}, showlegend=False, legendgroup=line.name,
        )  # fmt: skip
        figure.add_scatter(x=line.x, y=line.mean, name=line.name, legendgroup=line.name, line={"color": line.colour})
    return dress(figure, 440, xaxis_title=plot.x, yaxis_title=plot.y, hovermode="x unified")


def _by_round(one: ArmResult, name: str) -> Line:
    curves = list(one.curves.values())
    return _line(one, curves[0]["round"], [curve[name] for curve in curves])


def _over_kl(one: ArmResult) -> Line:
    curves = list(one.curves.values())
    levels = np.linspace(0, min(curve["kl"].max() for curve in curves), _POINTS)
    return _line(one, levels, [np.array([at_kl(curve, level) for level in levels.tolist()]) for curve in curves])


def _line(one: ArmResult, x: Floats, rows: Sequence[Floats]) -> Line:
    mean, half = band(rows)
    colour = str(qualitative.Dark24[list(KINDS).index(one.arm.kind)])
    return Line(f"{one.arm} ({len(rows)} seeds)", colour, x, mean, np.nan_to_num(half))
