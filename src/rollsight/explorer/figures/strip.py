"""The rollout as it was collected: environments below each other, steps from left to right, each in its score's
colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from rollsight.escaping import plain_html
from rollsight.explorer.theme import DROPPED, INVALID, SCORE_SCALE, dressed

_WIDE = 256  # steps in a line, where there are few environments
_CELLS = 60_000
_EDGE = "rgba(110,116,128,0.95)"


@dataclass(frozen=True, eq=False)
class Places:
    """Where each of N records stands.

    Attributes:
        line, across: (N,) its line and its place in that.
        labels: what each line is called.
        axis: what runs from left to right.
    """

    line: np.ndarray
    across: np.ndarray
    labels: list[str]
    axis: str


def places(env: np.ndarray, step: np.ndarray, name: str = "env", axis: str = "step") -> Places:
    """Environments (N,) as lines, steps (N,) from left to right; a long rollout of few environments is broken into
    several lines each."""
    envs, row = np.unique(env, return_inverse=True)
    steps = step.astype(np.int64) - (int(step.min()) if len(step) else 0)
    long = int(steps.max(initial=0)) + 1
    parts = 1 if len(envs) > 8 or long <= _WIDE else min(-(-long // _WIDE), max(1, 16 // len(envs)))
    wide = -(-long // parts)
    labels = [
        f"{name} {int(one)}" + (f" · {part * wide}" if parts > 1 else "") for one in envs for part in range(parts)
    ]
    return Places(
        row * parts + steps // wide, steps % wide, labels, axis if parts == 1 else f"{axis}, lines go on below"
    )


def strip(
    scores: np.ndarray,
    status: np.ndarray,
    at: Places,
    ends: np.ndarray | None = None,
    timed_out: np.ndarray | None = None,
) -> go.Figure:
    """Scores (N,) at their places; a cell's `customdata` is the number of its record, or NaN.

    Args:
        status: (N,) "kept", "dropped" or "invalid".
        ends: (N,) whether an episode ends with the record.
        timed_out: (N,) whether it ends there at its time limit.
    """
    lines, wide = len(at.labels), int(at.across.max(initial=0)) + 1
    block = -(-wide // max(1, _CELLS // max(lines, 1)))  # steps in a cell
    across = at.across // block
    wide = -(-wide // block)
    values, invalid = np.full((lines, wide), np.nan), np.full((lines, wide), np.nan)
    records = np.full((lines, wide), None)  # lists: of an array's customdata Dash gives a click nothing
    order = np.argsort(np.abs(np.nan_to_num(scores)), kind="stable")  # of a cell's steps the strongest is seen
    records[at.line[order], across[order]] = order
    values[at.line[order], across[order]] = scores[order]
    bad = np.flatnonzero(status == "invalid")
    invalid[at.line[bad], across[bad]] = 1
    finite = np.abs(scores[np.isfinite(scores)])
    limit = (float(np.quantile(finite, 0.98)) or float(finite.max())) if len(finite) else 0.0
    figure = go.Figure()
    x = np.arange(wide) * block
    hover = "%{y}, place %{x}<br>record %{customdata}<br>score %{z:.4g}<extra></extra>"
    figure.add_heatmap(
        z=values, x=x, customdata=records.tolist(), colorscale=SCORE_SCALE, zmin=-(limit or 1.0), zmax=limit or 1.0,
        xgap=0, ygap=3, hovertemplate=hover, hoverongaps=False, name="score",
        colorbar={"thickness": 10, "title": {"text": "score", "side": "right"}, "nticks": 5, "outlinewidth": 0},
    )  # fmt: skip
    if len(bad):
        figure.add_heatmap(
            z=invalid, x=x, colorscale=[[0, INVALID], [1, INVALID]], showscale=False, xgap=0, ygap=3,
            hoverongaps=False, customdata=records.tolist(),
            hovertemplate="record %{customdata}<br>invalid: nothing to train on<extra></extra>",
        )  # fmt: skip
    if ends is not None:
        some = np.flatnonzero(ends if timed_out is None else ends & ~timed_out)
        figure.add_trace(_edges(at, across, some, block, "episode ends", "solid"))
        if timed_out is not None and timed_out.any():
            figure.add_trace(_edges(at, across, np.flatnonzero(timed_out), block, "cut off at the time limit", "dot"))
    gone = np.flatnonzero(status == "dropped")
    if len(gone):
        # One path of short dashes: a browser draws hundreds of markers many times more slowly.
        x, y, nothing = across[gone] * block, at.line[gone] + 0.36, np.full(len(gone), np.nan)
        figure.add_scatter(
            x=np.stack([x - 0.35 * block, x + 0.35 * block, nothing], 1).ravel(), y=np.repeat(y, 3), mode="lines",
            name="dropped", hoverinfo="skip", line={"color": DROPPED, "width": 3},
        )  # fmt: skip
    axis = at.axis if block == 1 else f"{at.axis} (strongest of {block} in a cell)"
    figure.update_xaxes(title_text=axis, range=[-0.5 * block, (wide - 0.5) * block], showgrid=False, zeroline=False)
    every = max(1, len(at.labels) // 16)
    figure.update_yaxes(
        tickvals=np.arange(lines)[::every], ticktext=[plain_html(label) for label in at.labels][::every],
        range=[lines - 0.5, -0.5], showgrid=False, zeroline=False,
    )  # fmt: skip
    return dressed(figure, 100 + int(np.clip(22 * lines, 40, 420)), clickmode="event", hovermode="closest")


def _edges(at: Places, across: np.ndarray, some: np.ndarray, block: int, name: str, dash: str) -> go.Scatter:
    """Upright marks behind these records."""
    x, line = (across[some] + 0.5) * block, at.line[some]
    nothing = np.full(len(some), np.nan)
    return go.Scatter(
        x=np.stack([x, x, nothing], 1).ravel(), y=np.stack([line - 0.5, line + 0.5, nothing], 1).ravel(),
        mode="lines", line={"color": _EDGE, "width": 2, "dash": dash}, name=name, hoverinfo="skip",
    )  # fmt: skip
