"""How everything looks: one meaning per colour, one style of figure, one way to write a number."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go

# One meaning each, told apart by people who see fewer colours, and readable on white and on black.
HELPED, HURT, DROPPED, INVALID = "#1f86c9", "#d9601a", "#b5569f", "#8a8f98"
KEPT = "#4f9d69"  # next to DROPPED, where the sign of the score is not meant
# Series without a meaning of their own: runs and arms.
SERIES = ("#0f9d8a", "#6c5ce7", "#b8860b", "#c2475f", "#4f7f3a", "#3d5a80", "#9b6b43", "#7a8450")
# Low scores hurt, high ones help.
SCORE_SCALE = [[0.0, HURT], [0.5, "rgba(138,143,152,0.25)"], [1.0, HELPED]]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
# Text and grid lines take their colours from the page's style sheet, which knows whether the page is light or dark.
_AXIS = {
    "gridcolor": "rgba(128,134,144,0.22)",
    "zerolinecolor": "rgba(128,134,144,0.5)",
    "linecolor": "rgba(128,134,144,0.5)",
    "automargin": True,
    "exponentformat": "power",
    "title": {"standoff": 8},
}
TEMPLATE = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12, "color": "#5c6370"},
        "colorway": list(SERIES),
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 56, "r": 16, "t": 28, "b": 40},
        "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 12}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "rgba(128,134,144,0.6)", "activecolor": HELPED},
    }
)
# Plotly's own "share" button would upload the data to a server.
GRAPH_CONFIG: dict[str, Any] = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
}


def dressed(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """The figure in the explorer's style; height in pixels, the width is that of its place."""
    return figure.update_layout(template=TEMPLATE, height=height, **layout)


def number(value: Any, digits: int = 3) -> str:
    """A number as people read it: thousands grouped, few digits, a dash where there is none.

    digits: significant ones of a number that is not whole.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e7):
        return f"{int(value):,}".replace("-", "−")
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if 1e-3 <= size < 1e7:
        text = f"{value:,.{max(0, digits - 1 - math.floor(math.log10(size)))}f}"
    else:
        text = f"{value:.{digits - 1}e}"
    return text.replace("-", "−")


def percent(value: float | None) -> str:
    """A share as a percentage of three digits at most; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:.3g} %".replace("-", "−")
