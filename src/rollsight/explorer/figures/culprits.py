"""What taught a behaviour, from the kept result of an analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from rollsight.escaping import plain_html
from rollsight.explorer.figures.curves import Line, Strip, over_rounds
from rollsight.explorer.theme import HELPED, HURT, INVALID, dressed

_LABEL = 24  # characters of a group's name on the axis


def influence(result: Mapping[str, Any]) -> go.Figure:
    """pi(a|s), of completions log p(y|x), before each round, and the influence of its records, for and against.

    result: as `rollsight culprits` keeps it in `result.json`.
    """
    rounds = result["rounds"]
    x = np.array([one["round"] for one in rounds], float)

    def values(name: str) -> np.ndarray:
        return np.array([np.nan if one[name] is None else one[name] for one in rounds], float)

    before = values("before")
    if any("completion" in one for one in result["records"]):
        strips = [Strip("log p(y|x)", [Line("before the update", x, before)])]
    elif np.nanmax(before) > 0:  # a density
        strips = [Strip("log density", [Line("before the update", x, before)])]
    else:
        strips = [Strip("π(a|s)", [Line("probability before the update", x, np.exp(before))], (0, 1.02))]
    strips.append(
        Strip(
            "influence",
            [
                Line("made it likelier", x, values("positive"), colour=HELPED),
                Line("made it less likely", x, values("negative"), colour=HURT),
                Line("sum", x, values("predicted"), colour=INVALID, dash="dot"),
            ],
        )
    )
    return over_rounds(strips, height=170)


def shares(name: str, groups: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Bars of groups: share of the positive influence next to the share of the records, highest influence on top.

    name: of the column that they are gathered by.
    """
    labels = [plain_html(_short(one["value"])) for one in groups]
    figure = go.Figure()
    for key, label, colour in (
        ("share_of_records", "share of the records", INVALID),
        ("share", "share of the positive influence", HELPED),
    ):
        figure.add_bar(
            x=[one[key] for one in groups],
            y=list(range(len(groups))),
            name=label,
            orientation="h",
            marker_color=colour,
            hovertemplate=f"{label}: %{{x:.1%}}<extra></extra>",
        )
    return dressed(
        figure,
        90 + 34 * len(groups),
        barmode="group",
        bargap=0.3,
        xaxis={"tickformat": ".0%", "rangemode": "tozero", "title": {"text": "share"}},
        yaxis={
            "tickvals": list(range(len(groups))),
            "ticktext": labels,
            "autorange": "reversed",
            "title": {"text": plain_html(_short(name))},
        },
        legend={"traceorder": "reversed"},
    )


def _short(value: object) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"
