"""How a behaviour formed, from the kept result of an analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from rollsight.explorer.figures.curves import Line, Strip, over_rounds
from rollsight.explorer.theme import HELPED, INVALID

_SHADES = ("rgba(184,134,11,0.10)", "rgba(31,134,201,0.10)", "rgba(79,127,58,0.10)")


def formation(result: Mapping[str, Any]) -> go.Figure:
    """pi(a|s), mean size of the influences and their roughness with what chance gives, phases shaded.

    result: as `phases --out` writes it to `result.json`.
    """
    rounds = result["rounds"]
    x = np.array([one["round"] for one in rounds], float)

    def values(name: str) -> np.ndarray:
        return np.array([np.nan if one[name] is None else one[name] for one in rounds], float)

    ends = np.array([one["null"] or (np.nan, np.nan) for one in rounds], float).reshape(-1, 2)
    chance = Line("by chance, 95 %", x, ends.mean(1), ends[:, 0], ends[:, 1], colour=INVALID, dash="dot")
    strips = [
        Strip(
            "π(a|s)", [Line("probability before the update", x, np.exp(values("log_prob")), colour=HELPED)], (0, 1.02)
        ),
        Strip("mean |influence|", [Line("influence", x, values("influence"))]),
        Strip("roughness", [Line("roughness", x, values("roughness")), chance]),
    ]
    if _density(rounds):
        strips[0] = Strip("log density", [Line("before the update", x, values("log_prob"), colour=HELPED)])
    figure = over_rounds(strips, height=170)
    # In the first strip, whose axes are "x" and "y".
    for shade, phase in zip(_SHADES, result.get("phases", []), strict=False):
        figure.add_vrect(
            x0=phase["first"] - 0.5, x1=phase["last"] + 0.5, fillcolor=shade, line_width=0, layer="below",
            annotation_text=phase["name"], annotation_position="top left", annotation_font_size=11,
        )  # fmt: skip
    return figure


def _density(rounds: Any) -> bool:
    return any(one["log_prob"] > 0 or math.isinf(math.exp(min(one["log_prob"], 700))) for one in rounds)
