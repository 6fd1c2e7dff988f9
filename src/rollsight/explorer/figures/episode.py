"""An episode's scores, step by step."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from rollsight.explorer.theme import DROPPED, HELPED, HURT, INVALID, dressed


def score_curve(
    steps: np.ndarray, scores: np.ndarray, records: np.ndarray, status: np.ndarray, present: int, height: int = 170
) -> go.Figure:
    """A bar for each step of an episode, the present one marked; a bar's `customdata` is the number of its record.

    Args:
        steps: (L,) since the episode began.
        scores: (L,) NaN where there is none.
        records: (L,) numbers in the buffer.
        status: (L,) "kept", "dropped" or "invalid".
        present: which of them is looked at.
    """
    figure = go.Figure()
    for name, some, colour in (("hurt", scores < 0, HURT), ("helped", scores >= 0, HELPED)):
        figure.add_bar(
            x=steps[some], y=scores[some], width=0.9 if len(steps) < 400 else 1.0, name=name,
            marker={"color": colour, "line": {"width": 0}}, customdata=records[some].tolist(),
            hovertemplate="step %{x}, record %{customdata}<br>score %{y:.4g}<extra></extra>",
        )  # fmt: skip
    for name, colour in (("dropped", DROPPED), ("invalid", INVALID)):
        some = status == name
        if some.any():
            figure.add_scatter(
                x=steps[some], y=np.zeros(int(some.sum())), mode="markers", name=name,
                customdata=records[some].tolist(), marker={"color": colour, "size": 5, "symbol": "square"},
                hovertemplate=f"{name}, step %{{x}}<extra></extra>",
            )  # fmt: skip
    figure.add_vline(x=float(steps[present]), line={"color": "rgba(110,116,128,0.95)", "width": 2})
    figure.update_xaxes(title_text="steps since the episode began")
    figure.update_yaxes(title_text="score")
    return dressed(
        figure, height, barmode="overlay", clickmode="event",
        hovermode="x", legend={"x": 1, "xanchor": "right"},
    )  # fmt: skip
