"""Tokens by what they are worth: the colour behind each, and a strip of the values by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from rollsight.escaping import plain_html
from rollsight.explorer.figures.curves import thinned
from rollsight.explorer.theme import HELPED, HURT, SERIES, dressed, number


@dataclass(frozen=True)
class Measure:
    """One number for each token.

    Attributes:
        column: of the records.
        name: what readers call it.
        unit: "" where there is none.
        signed: whether zero is the middle, with one colour for either side; else larger is deeper.
        low_is_deep: whether the lowest value has the deepest colour.
    """

    column: str
    name: str
    unit: str = ""
    signed: bool = False
    low_is_deep: bool = False

    @property
    def title(self) -> str:
        """The name with its unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


_KNOWN = (
    Measure("token_scores", "score", signed=True),
    Measure("token_advantages", "advantage", signed=True),
    Measure("token_log_probs", "log-probability", "nats", low_is_deep=True),
    Measure("token_values", "value", "return"),
    Measure("token_entropies", "entropy", "nats"),
    Measure("token_kl", "KL", "nats", signed=True),
)


def measure_of(column: str) -> Measure:
    """How a column of token values is shown."""
    known = next((one for one in _KNOWN if one.column == column), None)
    return known or Measure(column, column.removeprefix("token_").replace("_", " "))


@dataclass(frozen=True)
class Scale:
    """From values to colours.

    Attributes:
        measure: what the values are.
        low, high: the values with the palest and the deepest colour; of a signed measure, -high to high.
    """

    measure: Measure
    low: float
    high: float

    def colour(self, value: float) -> str:
        """The colour behind a token, readable on white and on black; transparent without a value."""
        if not np.isfinite(value):
            return "transparent"
        if self.measure.signed:
            return _rgba(HELPED if value > 0 else HURT, min(1.0, abs(value) / self.high) if self.high else 0.0)
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0
        share = min(1.0, max(0.0, share))
        return _rgba(SERIES[1], 1 - share if self.measure.low_is_deep else share)

    def ends(self) -> list[tuple[str, str]]:
        """Colour and label of the scale's ends, from the lowest value."""
        low = -self.high if self.measure.signed else self.low
        return [(self.colour(value), number(float(value))) for value in (low, self.high)]


def scale_of(measure: Measure, values: np.ndarray) -> Scale:
    """The scale for values (n,) of a whole round, so that completions can be compared; a hundredth at either end may be
    beyond it."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Scale(measure, 0.0, 0.0)
    if measure.signed:
        return Scale(measure, 0.0, float(np.quantile(np.abs(known), 0.98)))
    low, high = np.quantile(known, (0.01, 0.99))
    return Scale(measure, float(low), float(high))


def by_position(values: Sequence[float], scale: Scale, texts: Sequence[str] | None = None) -> go.Figure:
    """A bar for each token, by its place in the completion."""
    heights = np.asarray(values, np.float64)
    at = thinned(len(heights))
    words = [f"{plain_html(repr(texts[i])[1:-1])}<br>" if texts is not None else "" for i in at.tolist()]
    signed = scale.measure.signed
    colours = [(HELPED if value > 0 else HURT) if signed else SERIES[1] for value in heights[at].tolist()]
    figure = go.Figure(
        go.Bar(
            x=at + 1, y=heights[at], marker={"color": colours, "line": {"width": 0}}, customdata=words,
            hovertemplate="%{customdata}token %{x}: %{y:.4g}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title_text="token", dtick=1 if len(heights) <= 24 else None)
    figure.update_yaxes(title_text=scale.measure.title, nticks=4, title_font_size=11)
    return dressed(figure, 130, margin={"l": 56, "r": 8, "t": 6, "b": 36}, bargap=0.15)


def _rgba(colour: str, share: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{0.45 * share:.2f})"
