"""A behaviour's development as an interactive page: its course over the rounds, and the records that taught it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rollsight.analysis.drawing import BLUE, GREY, RED, SHADES
from rollsight.analysis.page import Panel, band, dress, short, write_page
from rollsight.analysis.phases.formation import Development, Formation
from rollsight.analysis.phases.labels import frame, rough_rounds
from rollsight.escaping import plain_html

_LISTED = 5  # top records that a round's hover text names


def write(result: Development, title: str, path: Path) -> Path:
    """Write the page.

    Raises:
        RollsightError: the file cannot be written.
    """
    lead = (
        f"{result.verdict[:1].upper()}{result.verdict[1:]}. Influence: scores for {result.target}, normalisation "
        f"{result.normalisation}. Roughness over {result.neighbours} nearest neighbours among records of positive "
        f"influence; embedding: input of {result.embedding}."
    )
    return write_page(path, title, lead, panels(result))


def panels(result: Development) -> list[Panel]:
    """The page's figures."""
    return [
        Panel(
            "course",
            "Over the rounds",
            "Point at a round for its top records. Dots in the middle: the influences of the top records themselves. "
            "The grey band holds 95 % of the roughness that the same influences have when dealt out at random.",
            course(result),
        ),
        Panel(
            "map",
            "Where the top records lie",
            "States in the first two principal components of the embedding: the round's top records, a sample of its "
            "other records, and the behaviour's own state as a star.",
            top_records(result),
        ),
    ]


def course(result: Development) -> go.Figure:
    """pi(a|s), influence and roughness with its band, below each other over the same rounds, phases shaded."""
    figure = make_subplots(3, 1, shared_xaxes=True, vertical_spacing=0.05)
    numbers = [one.round for one in result.rounds]
    line = {"x": numbers, "mode": "lines+markers", "hoverinfo": "text"}
    said = [_summary(one) for one in result.rounds]
    likely = [math.exp(one.log_prob) for one in result.rounds]
    figure.add_scatter(**line, y=likely, hovertext=said, name="pi(a|s)", line_color=BLUE, row=1, col=1)
    size = [one.influence for one in result.rounds]
    figure.add_scatter(**line, y=size, hovertext=said, name="mean |influence|", line_color=GREY, row=2, col=1)
    best = [(one.round, row) for one in result.rounds for row in one.top]
    figure.add_scatter(
        x=[number for number, _ in best],
        y=[row["influence"] for _, row in best],
        hovertext=[f"<b>round {number}</b><br>{_record(row)}" for number, row in best],
        hoverinfo="text",
        mode="markers",
        marker={"color": RED, "size": 5, "opacity": 0.5},
        name="top records",
        row=2,
        col=1,
    )
    where, rough, low, high = rough_rounds(result.rounds).tolist()
    figure.add_trace(band(where, low, high, "at random, 95 %"), row=3, col=1)
    rows = zip(where, rough, low, high, strict=True)
    text = [f"round {number:.0f}: {value:.4g} (at random {a:.4g} to {b:.4g})" for number, value, a, b in rows]
    line["x"] = where
    figure.add_scatter(**line, y=rough, hovertext=text, name="roughness", line_color=RED, row=3, col=1)
    for phase, shade in zip(result.phases, SHADES, strict=False):
        span = {"x0": phase.first - 0.5, "x1": phase.last + 0.5, "fillcolor": shade, "line_width": 0, "layer": "below"}
        figure.add_vrect(**span, row="all", col=1)
        middle = (phase.first + phase.last) / 2
        figure.add_annotation(x=middle, xref="x", y=1, yref="y domain", text=phase.name, showarrow=False, yanchor="top")
    figure.update_yaxes(title_text="pi(a|s)", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="influence", type="log", nticks=6, row=2, col=1)
    figure.update_yaxes(title_text="roughness", rangemode="tozero", row=3, col=1)
    figure.update_xaxes(title_text="round", row=3, col=1)
    return dress(figure, 720, hovermode="closest")


def top_records(result: Development) -> go.Figure:
    """The map of embeddings: two traces per round, chosen by a slider, and the behaviour's own state."""
    figure = go.Figure()
    for index, one in enumerate(result.rounds):
        shown = {"mode": "markers", "visible": index == 0}
        figure.add_scatter(
            **shown, x=one.background[:, 0], y=one.background[:, 1], name="sample of the round", hoverinfo="skip",
            marker={"color": "#c4c7cc", "size": 4},
        )  # fmt: skip
        figure.add_scatter(
            **shown, x=one.places[:, 0], y=one.places[:, 1], name="top records", hoverinfo="text",
            hovertext=[_record(row) for row in one.top], marker={"color": RED, "size": 9, "opacity": 0.8},
        )  # fmt: skip
    star: dict[str, Any] = {"symbol": "star", "color": BLUE, "size": 14, "line": {"color": "white", "width": 1}}
    x, y = result.place.tolist()
    figure.add_scatter(x=[x], y=[y], mode="markers", marker=star, name="the behaviour", hoverinfo="name")
    steps = [
        {
            "label": str(one.round),
            "method": "restyle",
            "args": [{"visible": [number // 2 == index for number in range(2 * len(result.rounds))] + [True]}],
        }
        for index, one in enumerate(result.rounds)
    ]
    across, up = frame(result).tolist()
    blank = {"showticklabels": False, "zeroline": False, "showgrid": False, "showline": True, "mirror": True}
    slider = {"steps": steps, "currentvalue": {"prefix": "round "}, "pad": {"t": 30}}
    return dress(
        figure,
        560,
        xaxis={**blank, "range": across, "title": "first component"},
        yaxis={**blank, "range": up, "title": "second component"},
        sliders=[slider],
    )


def _summary(one: Formation) -> str:
    """What a round's point says."""
    lines = [f"<b>round {one.round}</b>: pi(a|s) {math.exp(one.log_prob):.4g}, mean |influence| {one.influence:.4g}"]
    if one.consistency is not None and one.consistency_all is not None:
        lines.append(f"consistent: {one.consistency:.0%} of the top records, {one.consistency_all:.0%} of all")
    lines += [_record(row) for row in one.top[:_LISTED]]
    return "<br>".join(lines)


def _record(row: dict[str, Any]) -> str:
    """A top record in a line: where it is, what was seen and done, and its numbers."""
    where = ":".join(str(row[name]) for name in ("env", "step") if name in row)
    seen = [f"{plain_html(name)} {short(row[name])}" for name in row if name.split(".")[0] in ("obs", "action")]
    numbers = f"advantage {row['advantage']:.3g}, influence {row['influence']:.3g}"
    return f"{row['rank']}. {where}  {', '.join(seen)}: {numbers}"
