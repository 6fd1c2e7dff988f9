"""Dots with their intervals, a row for each arm and a column for each measure, as one picture and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rollsight.analysis.drawing import GREY, RED, new_figure, save_figure
from rollsight.analysis.intervals import Interval
from rollsight.analysis.page import Panel, dress
from rollsight.escaping import plain_html, plain_label

_LINE = "#444444"
_WIDTH = 210  # characters of a caption's line in the picture


@dataclass(frozen=True)
class Dot:
    """A figure with its interval.

    value: the figure.
    low, high: ends of its interval.
    reported: the paper's figure, one value or the two ends of a range; empty where unknown.
    """

    value: float
    low: float
    high: float
    reported: tuple[float, ...] = ()

    @property
    def star(self) -> float:
        """The middle of what is reported."""
        return sum(self.reported) / len(self.reported)


@dataclass(frozen=True, eq=False)
class Column:
    """A measure of every arm.

    title: what is measured.
    dots: one for each arm.
    limits: of the axis.
    null: from and to what the measure shows where there is nothing to show; None where that is unknown.
    """

    title: str
    dots: list[Dot]
    limits: tuple[float, float]
    null: tuple[float, float] | None = None


def column_of(title: str, found: Sequence[Interval]) -> Column:
    """A measure whose axis holds 0, every figure and both ends of its interval."""
    ends = [end for one in found for end in (0.0, one.value, one.low, one.high) if np.isfinite(end)]
    margin = 0.06 * (max(ends) - min(ends)) or 1.0
    return Column(title, [Dot(one.value, one.low, one.high) for one in found], (min(ends) - margin, max(ends) + margin))


@dataclass(frozen=True, eq=False)
class IntervalPlot:
    """Arms, and a dot of each in every column.

    title: what is common to the arms.
    names: of the arms.
    colours: of the arms.
    columns: the measures.
    """

    title: str
    names: list[str]
    colours: list[str]
    columns: list[Column]


def draw(plots: Sequence[IntervalPlot], path: Path, caption: str) -> Path:
    """All plots below each other as one picture; they must have the same columns. caption: how to read it.

    Raises:
        RollsightError: the file cannot be written.
    """
    heights = [len(plot.names) + 2.2 for plot in plots]
    figure = new_figure(15.0, 1.0 + 0.26 * sum(heights))
    grid = figure.add_gridspec(len(plots), len(plots[0].columns), height_ratios=heights)
    for row, plot in enumerate(plots):
        for place, column in enumerate(plot.columns):
            axes = figure.add_subplot(grid[row, place])
            axes.axvline(0, color=_LINE, linewidth=0.8)
            axes.set_yticks(range(len(plot.names)), list(map(plain_label, plot.names)) if place == 0 else [])
            axes.set(ylim=(len(plot.names) - 0.5, -0.5), xlim=column.limits)
            axes.grid(axis="x", alpha=0.3)
            if row == 0:
                axes.set_title(column.title, fontsize=10)
            elif place == 0:
                axes.set_title(plain_label(plot.title), fontsize=10, loc="left")
            _draw(axes, column, plot.colours)
    figure.suptitle(fill(f"{plain_label(plots[0].title)}. {caption}", _WIDTH), fontsize=9)
    return save_figure(figure, path)


def panel(plot: IntervalPlot, name: str, caption: str) -> Panel:
    """The same on a page, with the figures under the mouse."""
    names = list(map(plain_html, plot.names))
    figure = make_subplots(1, len(plot.columns), shared_yaxes=True, subplot_titles=[one.title for one in plot.columns])
    for place, column in enumerate(plot.columns, 1):
        figure.add_scatter(
            x=[dot.value for dot in column.dots], y=names, mode="markers",
            marker={"color": plot.colours, "size": 7},
            customdata=[(dot.low, dot.high) for dot in column.dots], showlegend=False, row=1, col=place,
            hovertemplate="%{y}: %{x:.3g} [%{customdata[0]:.3g}, %{customdata[1]:.3g}]<extra></extra>",
        )  # fmt: skip
        for dot, arm, colour in zip(column.dots, names, plot.colours, strict=True):
            _interval(figure, (dot.low, dot.high), arm, {"color": colour, "width": 2}, place)
            if dot.reported:
                _interval(figure, dot.reported, arm, {"color": RED, "dash": "dot"}, place)
                figure.add_scatter(
                    x=[dot.star], y=[arm], mode="markers", marker={"color": RED, "symbol": "star", "size": 11},
                    showlegend=False, row=1, col=place, hovertemplate="the paper: %{x:.3g}<extra></extra>",
                )  # fmt: skip
        # After the dots: Plotly leaves out what it is to add to an empty plot.
        if column.null is not None:
            figure.add_vrect(*column.null, fillcolor=GREY, opacity=0.15, line_width=0, row=1, col=place)
        figure.add_vline(0, line_width=1, line_color=_LINE, row=1, col=place)
        figure.update_xaxes(range=column.limits, zeroline=False, nticks=5, tickangle=0, row=1, col=place)
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=names)
    return Panel(name, plot.title, caption, dress(figure, 130 + 26 * len(plot.names)))


def _draw(axes: Any, column: Column, colours: Sequence[str]) -> None:
    if column.null is not None:
        axes.axvspan(*column.null, color=GREY, alpha=0.15, linewidth=0)
    for place, (dot, colour) in enumerate(zip(column.dots, colours, strict=True)):
        axes.plot([dot.low, dot.high], [place, place], color=colour, linewidth=2)
        axes.plot(dot.value, place, "o", color=colour, markersize=5)
        if dot.reported:
            axes.plot(dot.reported, [place] * len(dot.reported), color=RED, linestyle=":")
            axes.plot(dot.star, place, "*", color=RED, markersize=11)


def _interval(figure: go.Figure, ends: Sequence[float], arm: str, line: dict[str, Any], place: int) -> None:
    figure.add_scatter(
        x=ends, y=[arm] * len(ends), mode="lines", line=line, hoverinfo="skip", showlegend=False, row=1, col=place
    )
