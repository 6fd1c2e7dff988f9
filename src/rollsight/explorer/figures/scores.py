"""A round's scores: their histogram with the cut, against the advantage, and the harmful mass by what records share."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from rollsight.escaping import plain_html
from rollsight.explorer.theme import DROPPED, HELPED, HURT, INVALID, KEPT, dressed, number, percent

_DRAWN = 400  # points; a browser takes 0.2 ms for each
_BINS = 60
_STEPS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # between ticks of a share
_INSIDE = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "top", "orientation": "v", "font": {"size": 11}}


def edges_of(scores: np.ndarray) -> np.ndarray:
    """The ends of a histogram's bars, all of one width, one of them 0 where scores are on both sides of it."""
    finite = scores[np.isfinite(scores)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    if low == high:
        return np.array([low - 0.5, low + 0.5])
    if low >= 0 or high <= 0:
        return np.linspace(low, high, _BINS + 1)
    width = (high - low) / _BINS
    first, last = int(np.floor(low / width)), int(np.ceil(high / width))
    return np.asarray(np.arange(first, last + 1) * width)


def histogram(scores: np.ndarray, status: np.ndarray, cut: float | None = None, height: int = 260) -> go.Figure:
    """How many records have which score; a bar's `customdata` is (from, to, whether it is the last).

    Args:
        scores: (N,) NaN where there is none.
        status: (N,) "kept" or "dropped".
        cut: the score up to which records were dropped.
    """
    figure = go.Figure()
    edges = edges_of(scores)
    # A list: of an array's customdata Dash gives a click nothing.
    bars = [
        (low, high, bool(high == edges[-1])) for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    for name, colour in (("kept", KEPT), ("dropped", DROPPED)):
        counts, _ = np.histogram(scores[(status == name) & np.isfinite(scores)], edges)
        if not counts.any():
            continue
        figure.add_bar(
            x=(edges[:-1] + edges[1:]) / 2, y=counts, width=np.diff(edges), name=name,
            marker={"color": colour, "line": {"width": 0}}, customdata=bars,
            hovertemplate="%{customdata[0]:.4g} to %{customdata[1]:.4g}: %{y} " + name + "<extra></extra>",
        )  # fmt: skip
    lines, said = [_upright(0, {"color": "rgba(128,134,144,0.9)", "width": 1})], []
    if cut is not None:
        lines.insert(0, _upright(cut, {"color": DROPPED, "width": 1.5, "dash": "dash"}))
        said.append(
            {
                "text": f"cut at {number(cut)}", "showarrow": False, "font": {"size": 11},
                "x": cut, "xanchor": "center", "xref": "x", "y": 1, "yanchor": "bottom", "yref": "y domain",
            }
        )  # fmt: skip
    figure.update_xaxes(title_text="score; negative hurts the target")
    figure.update_yaxes(title_text="records")
    return dressed(
        figure, height, barmode="stack", bargap=0, dragmode="select", selectdirection="h", clickmode="event",
        newselection={"line": {"width": 1, "dash": "dot", "color": INVALID}}, legend=_INSIDE,
        shapes=lines, annotations=said,
    )  # fmt: skip


def _upright(x: float, line: dict[str, Any]) -> dict[str, Any]:
    """A line from the bottom of the figure to its top; Plotly's own `add_vline` takes ten times as long."""
    return {"type": "line", "x0": x, "x1": x, "xref": "x", "y0": 0, "y1": 1, "yref": "y domain", "line": line}


def thinned(scores: np.ndarray, most: int = _DRAWN) -> np.ndarray:
    """Which of (N,) records are drawn: all, or those with the largest scores and an even sample of the others."""
    if len(scores) <= most:
        return np.arange(len(scores))
    order = np.argsort(-np.nan_to_num(np.abs(scores)), kind="stable")
    rest = order[most // 5 :]
    even = rest[np.linspace(0, len(rest) - 1, most - most // 5).astype(int)]
    return np.unique(np.concatenate([order[: most // 5], even]))


def against_advantage(
    scores: np.ndarray,
    advantages: np.ndarray,
    status: np.ndarray,
    unit: str = "return",
    height: int = 260,
    name: str = "advantage",
) -> go.Figure:
    """Score over advantage, a point for each record; `customdata` is its number. All are (N,).

    unit: of the advantages. name: what stands in their place, where that is something else.
    """
    figure = go.Figure()
    shown = thinned(scores)
    looks = {"kept": (KEPT, "circle"), "dropped": (DROPPED, "x-thin"), "invalid": (INVALID, "circle-open")}
    for state, (colour, symbol) in looks.items():
        some = shown[(status[shown] == state) & np.isfinite(advantages[shown])]
        if not len(some):
            continue
        values = np.nan_to_num(scores[some]) if state == "invalid" else scores[some]  # which have no score
        figure.add_scatter(
            x=advantages[some], y=values, mode="markers", name=state, customdata=some.tolist(),
            marker={
                "color": colour, "size": 5, "symbol": symbol, "opacity": 0.7,
                "line": {"width": 1.2 if symbol == "x-thin" else 0, "color": colour},
            },
            hovertemplate=f"record %{{customdata}}<br>{name} %{{x:.4g}}<br>score %{{y:.4g}}<extra>{state}</extra>",
        )  # fmt: skip
    note = f" · {len(shown):,} of {len(scores):,} drawn" if len(shown) < len(scores) else ""
    figure.update_xaxes(title_text=f"{name} ({unit}){note}")
    figure.update_yaxes(title_text="score")
    return dressed(figure, height, clickmode="event", hovermode="closest", legend={"x": 1, "xanchor": "right"})


def split_mass(
    labels: list[str], hurt: np.ndarray, helped: np.ndarray, records: np.ndarray, left_out: int = 0, height: int = 260
) -> go.Figure:
    """Shares (K,) of the sum of all absolute scores: in negative ones to the left, in positive ones to the right. A
    bar's `customdata` is its place among the labels.

    left_out: how many further values are not drawn.
    """
    figure = go.Figure()
    places = np.arange(len(labels))
    for name, values, colour in (("harmful", -hurt, HURT), ("helpful", helped, HELPED)):
        figure.add_bar(
            y=places, x=values, orientation="h", name=name, marker={"color": colour, "line": {"width": 0}},
            customdata=list(zip(places.tolist(), np.abs(values).tolist(), records.tolist(), strict=True)),
            text=None, hovertemplate="%{customdata[1]:.2%} " + name + ", %{customdata[2]} records<extra></extra>",
        )  # fmt: skip
    limit = float(max(hurt.max(initial=0), helped.max(initial=0), 1e-9)) * 1.08
    step = max((one for one in _STEPS if one <= limit), default=_STEPS[0])  # one or two ticks on either side of 0
    ticks = np.arange(-np.floor(limit / step), np.floor(limit / step) + 1) * step
    further = f"; {left_out:,} with less harm left out" if left_out else ""
    figure.update_xaxes(
        title_text=f"share of all absolute scores{further}", range=[-limit, limit], tickvals=ticks, tickangle=0,
        ticktext=[percent(abs(float(tick))) for tick in ticks],
    )  # fmt: skip
    names = [plain_html(label) for label in labels]
    every = max(1, len(labels) // 14) if not left_out else max(1, len(labels) // 12)
    figure.update_yaxes(tickvals=places[::every], ticktext=names[::every], autorange="reversed")
    return dressed(
        figure, height, barmode="overlay", bargap=0.25, clickmode="event", legend={"x": 1, "xanchor": "right"}
    )
