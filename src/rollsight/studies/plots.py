"""Mean curves of arms with their bands, as one picture and as one page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import qualitative

from rollsight.analysis.drawing import new_figure, save_figure
from rollsight.analysis.intervals import band
from rollsight.analysis.page import Panel, dress, write_page
from rollsight.arrays import Floats
from rollsight.escaping import plain_html, plain_label
from rollsight.studies.arms import Arm, used_kinds
from rollsight.studies.curves import Curve

_CAPTION = "Mean over seeds with its 95 % band; click an arm in the legend to hide it, twice to see it alone."


@dataclass(frozen=True, eq=False)
class Line:
    """An arm's mean over seeds.

    name: in the legend.
    colour: of line and band.
    x: (n,) places on the axis.
    mean: (n,) the line.
    half: (n,) half-width of the 95 % band; 0 for one seed.
    """

    name: str
    colour: str
    x: Floats
    mean: Floats
    half: Floats


@dataclass(frozen=True, eq=False)
class Axes:
    """One plot.

    x: what the horizontal axis shows.
    y: what the vertical axis shows.
    lines: the curves.
    title: above the plot.
    log: x by its logarithm, each point and its value marked.
    """

    x: str
    y: str
    lines: list[Line]
    title: str = ""
    log: bool = False

    @property
    def limits(self) -> tuple[float, float] | None:
        """Of y, so that every mean and usual bands are seen: the band of two or three seeds may leave the plot. None
        where nothing moves."""
        means, halves = (np.concatenate(parts) for parts in zip(*((o.mean, o.half) for o in self.lines), strict=True))
        known = np.isfinite(means)  # a column may begin later than its rounds
        means, halves = means[known], halves[known]
        if not len(means):
            return None
        low, high = float(means.min()), float(means.max())
        room = max((high - low) / 2, 1.5 * float(np.median(halves)))
        low, high = max(low - room, float((means - halves).min())), min(high + room, float((means + halves).max()))
        margin = 0.04 * (high - low)
        return (low - margin, high + margin) if margin else None

    @property
    def ticks(self) -> dict[float, str]:
        """Every x of its lines, and how it is written."""
        return {value: f"{value:g}" for value in sorted({x for one in self.lines for x in one.x.tolist()})}


def colour(place: int) -> str:
    """Of the kind of arms at this place."""
    return str(qualitative.Dark24[place])


def line(arm: Arm, x: Floats, rows: Sequence[Floats], name: str | None = None) -> Line:
    """The line of an arm, one row (n,) per seed. name: None is the arm's."""
    mean, half = band(rows)
    seeds = f"{len(rows)} seed{'s' if len(rows) > 1 else ''}"
    return Line(f"{name or arm} ({seeds})", colour(arm.kind_number), x, mean, np.nan_to_num(half))


def by_round(arm: Arm, curves: Iterable[Curve], column: str, name: str | None = None) -> Line:
    """A column of an arm's curves."""
    found = list(curves)
    return line(arm, found[0]["round"], [curve[column] for curve in found], name)


def draw(plots: Sequence[Axes], path: Path, columns: int, size: tuple[float, float]) -> Path:
    """All plots as one picture. size: in inches.

    Raises:
        RollsightError: the file cannot be written.
    """
    figure = new_figure(*size)
    for index, plot in enumerate(plots):
        axes = figure.add_subplot(-(-len(plots) // columns), columns, index + 1)
        for one in plot.lines:
            marker = "o" if plot.log else None
            style: dict[str, Any] = {"color": one.colour, "linewidth": 1.6, "marker": marker, "markersize": 4}
            axes.plot(one.x, one.mean, label=plain_label(one.name), **style)
            low, high = one.mean - one.half, one.mean + one.half
            axes.fill_between(one.x, low, high, color=one.colour, alpha=0.15, linewidth=0)
        axes.set(xlabel=plot.x, ylabel=plot.y, title=plain_label(plot.title), xscale="log" if plot.log else "linear")
        if plot.log:
            axes.set_xticks(list(plot.ticks), list(plot.ticks.values()))
            axes.minorticks_off()
        axes.set_ylim(plot.limits)
        axes.grid(alpha=0.3)
        if plot.title:  # plots with titles differ in their arms, others in what they show
            axes.legend(frameon=False, fontsize=8)
    if plots and not plots[0].title:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False, fontsize=8)
    return save_figure(figure, path)


def panels(plots: Sequence[Axes], first: int = 0) -> list[Panel]:
    """All plots for a page, arms switched on and off in the legends. first: how many panels come before them."""
    return [
        Panel(f"plot{place}", plot.title or f"{plot.y} by {plot.x.partition(' ')[0]}", _CAPTION, _page(plot))
        for place, plot in enumerate(plots, first)
    ]


def write(panels: Sequence[Panel], path: Path, title: str, arms: Iterable[Arm]) -> Path:
    """The page. arms: that are shown; their kinds are explained.

    Raises:
        RollsightError: the file cannot be written.
    """
    lead = "Each arm: " + "; ".join(f"{kind}: {text}" for kind, text in used_kinds(arms).items()) + "."
    return write_page(path, title, lead, panels)


def write_both(
    plots: Sequence[Axes], folder: Path, columns: int, size: tuple[float, float], title: str, arms: Iterable[Arm]
) -> list[Path]:
    """The same plots as a picture, curves.png, and as a page, index.html.

    Raises:
        RollsightError: a file cannot be written.
    """
    return [draw(plots, folder / "curves.png", columns, size), write(panels(plots), folder / "index.html", title, arms)]


def _page(plot: Axes) -> go.Figure:
    figure = go.Figure()
    for one in plot.lines:
        low, high = one.mean - one.half, one.mean + one.half
        figure.add_scatter(
            x=[*one.x, *one.x[::-1]], y=[*high, *low[::-1]], fill="toself", opacity=0.15, hoverinfo="skip",
            mode="lines", line={"width": 0, "color": one.colour}, showlegend=False, legendgroup=one.name,
        )  # fmt: skip
        mode = "lines+markers" if plot.log else "lines"
        figure.add_scatter(
            x=one.x, y=one.mean, name=plain_html(one.name), line_color=one.colour, mode=mode, legendgroup=one.name,
        )  # fmt: skip
    if plot.log:
        figure.update_xaxes(type="log", tickvals=list(plot.ticks), ticktext=list(plot.ticks.values()))
    figure.update_yaxes(range=plot.limits)
    return dress(figure, 440, xaxis_title=plot.x, yaxis_title=plot.y, hovermode="x unified")
