"""Lines over rounds: learning curves of several runs, and what else a run measured under the same axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from rollsight.escaping import plain_html
from rollsight.explorer.theme import SERIES, dressed, number

_DRAWN = 400  # points of a line


@dataclass(frozen=True, eq=False)
class Line:
    """One line over rounds.

    Attributes:
        name: what the legend says.
        rounds: (R,), ascending.
        values: (R,), NaN where there is none.
        low, high: (R,) ends of a band around it, or None.
        colour: of the line; one of the series' by default.
        dash: a style of Plotly's, such as "dot".
    """

    name: str
    rounds: np.ndarray
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    colour: str | None = None
    dash: str | None = None


@dataclass(frozen=True)
class Strip:
    """One row of a figure: lines of the same unit.

    Attributes:
        title: what the axis measures, with its unit.
        lines: drawn over each other.
        range: ends of the axis, or None for what the lines need.
    """

    title: str
    lines: Sequence[Line]
    range: tuple[float, float] | None = None


def over_rounds(strips: Sequence[Strip], height: int = 130, mark: int | None = None) -> go.Figure:
    """Strips below each other with one axis of rounds; a click gives `customdata`, the round.

    height: of a strip, in pixels. mark: a round to point at.
    """
    # One dictionary, not Plotly's own subplots and updates, which look at all axes at every step: a third of the time.
    count, gap = len(strips), 34 / (height * len(strips)) if len(strips) > 1 else 0
    part = (1 - gap * (count - 1)) / count
    layout: dict[str, object] = {}
    traces: list[go.Scatter] = []
    shapes: list[dict[str, object]] = []
    named: dict[str, str] = {}
    for row, strip in enumerate(strips, 1):
        place = str(row) if row > 1 else ""
        bottom = (part + gap) * (count - row)
        for line in strip.lines:
            colour = line.colour or named.setdefault(line.name, SERIES[len(named) % len(SERIES)])
            traces += _traces(line, colour, place)
        below = {"title": {"text": "round"}} if row == count else {"matches": f"x{count}", "showticklabels": False}
        layout[f"xaxis{place}"] = {"anchor": f"y{place}", "domain": [0, 1], **below}
        layout[f"yaxis{place}"] = {
            "anchor": f"x{place}", "domain": [bottom, bottom + part], "nticks": 5, "range": strip.range,
            "title": {"text": strip.title, "font": {"size": 11}},
        }  # fmt: skip
        legend = {"orientation": "h", "x": 0.005, "y": bottom + part, "yanchor": "bottom", "font": {"size": 11}}
        layout[f"legend{place}"] = legend
        if mark is not None:
            dotted = {"width": 1, "dash": "dot", "color": "rgba(128,134,144,0.9)"}
            across = {"x0": mark, "x1": mark, "y0": 0, "y1": 1, "xref": f"x{place}", "yref": f"y{place} domain"}
            shapes.append({"type": "line", "line": dotted, **across})
    figure = go.Figure(traces, {**layout, "shapes": shapes})
    return dressed(figure, height * len(strips) + 80, hovermode="x unified", clickmode="event", showlegend=True)


def thinned(length: int) -> np.ndarray:
    """The indices, evenly spread and with both ends, of the points that a line of this length is drawn through."""
    if length <= _DRAWN:
        return np.arange(length)
    return np.unique(np.linspace(0, length - 1, _DRAWN).round().astype(int))


def _traces(line: Line, colour: str, place: str) -> list[go.Scatter]:
    legend, axes = f"legend{place}", {"xaxis": f"x{place}", "yaxis": f"y{place}"}
    at = thinned(len(line.rounds))
    rounds = line.rounds[at]
    name = plain_html(line.name)
    traces = []
    if line.low is not None and line.high is not None and np.isfinite(line.low).any():
        outline = np.concatenate([line.high[at], line.low[at][::-1]])
        traces.append(
            go.Scatter(
                x=np.concatenate([rounds, rounds[::-1]]), y=outline, mode="lines", line={"width": 0}, fill="toself",
                fillcolor=_faint(colour), hoverinfo="skip", showlegend=False, legend=legend, legendgroup=name,
                **axes,
            )
        )  # fmt: skip
    traces.append(
        go.Scatter(
            x=rounds, y=line.values[at], name=name, legendgroup=name, legend=legend,
            mode="lines" if len(at) > 60 else "lines+markers", marker={"size": 4},
            line={"color": colour, "width": 1.8, "dash": line.dash}, customdata=rounds.tolist(),
            hovertemplate="%{y:.4g}" if line.name == "" else None, **axes,
        )
    )  # fmt: skip
    return traces


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def bands(lines: Mapping[str, Sequence[Line]]) -> list[Line]:
    """One line for each group: the mean over its lines at the rounds that all have, with a band from the lowest to the
    highest where there are several."""
    grouped = []
    for name, members in lines.items():
        common = members[0].rounds
        for member in members[1:]:
            common = np.intersect1d(common, member.rounds)
        if not len(common):
            continue
        stacked = np.stack([member.values[np.searchsorted(member.rounds, common)] for member in members])
        finite = np.isfinite(stacked)
        count = np.maximum(finite.sum(0), 1)
        mean = np.where(finite.any(0), np.where(finite, stacked, 0).sum(0) / count, np.nan)
        low = np.where(finite, stacked, np.inf).min(0)
        high = np.where(finite, stacked, -np.inf).max(0)
        several = len(members) > 1
        label = f"{name} ({number(len(members))} seeds)" if several else name
        grouped.append(Line(label, common, mean, low if several else None, high if several else None))
    return grouped
