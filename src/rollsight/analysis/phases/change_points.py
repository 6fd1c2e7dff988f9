"""Where a short series changes: at most two changes of its mean, each with a permutation test.

Neither SciPy nor scikit-learn has a change-point search, and the series here are a few hundred rounds at most, so the
best segmentation is found exactly, and permutations give the p-values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rollsight.arrays import Floats
from rollsight.streams import Purpose, stream

SHORTEST = 3  # entries of a segment
_PERMUTATIONS = 999


@dataclass(frozen=True)
class Change:
    """A place where a series' mean changes.

    at: the first entry after the change.
    p: p-value of the permutation test that found it.
    columns: p-value of each column alone for a change at this place.
    """

    at: int
    p: float
    columns: tuple[float, ...]


def find_changes(series: Floats, alpha: float = 0.05, seed: int = 0) -> list[Change]:
    """No, one or two changes of the mean of a series (R, C), whose columns are put on a common scale.

    The null hypothesis is that the rounds are exchangeable: with probability alpha, at most, a change is found in such
    a series. Rounds that drift are not exchangeable, so a slow trend is found too, as a change in its middle. Two
    changes, those of the exact least-squares segmentation into three, are returned where each is significant at
    alpha / 2 between its neighbours; otherwise the one best change.
    """
    length = len(series)
    deviation = series.std(axis=0)
    scaled = (series - series.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    if length < 2 * SHORTEST or not deviation.any():
        return []
    rng = stream(seed, Purpose.CHANGE_POINTS)
    one = int(np.argmax(_gains(scaled[None])[0])) + SHORTEST
    p = _p_value(scaled, rng)
    if p > alpha:
        return []
    if length >= 3 * SHORTEST:
        first, second = _best_two(scaled)
        spans = (first, 0, second), (second, first, length)
        tested = [(at, low, high, _p_value(scaled[low:high], rng)) for at, low, high in spans]
        if all(p_local <= alpha / 2 for *_, p_local in tested):
            return [_change(scaled, *entry, rng) for entry in tested]
    return [_change(scaled, one, 0, length, p, rng)]


def _gains(series: Floats) -> Floats:
    """(B, S): how much a change at each allowed place lessens the sum of squares of (B, R, C), over the columns."""
    length = series.shape[1]
    places = np.arange(SHORTEST, length - SHORTEST + 1)
    before = series.cumsum(axis=1)[:, places - 1]
    after = series.sum(axis=1, keepdims=True) - before
    left, right = places[:, None], (length - places)[:, None]
    # Identity: the between-segment sum of squares n1 n2 / n (mean1 - mean2)^2.
    gains: Floats = (left * right / length * (before / left - after / right) ** 2).sum(axis=2)
    return gains


def _p_value(series: Floats, rng: np.random.Generator) -> float:
    """Of the largest gain, among those of the series with its entries permuted."""
    largest = _gains(series[None]).max() if len(series) >= 2 * SHORTEST else -np.inf
    return _share_reaching(largest, series, rng, slice(None)) if np.isfinite(largest) else 1.0


def _share_reaching(gain: float, series: Floats, rng: np.random.Generator, places: slice) -> float:
    orders = rng.permuted(np.tile(np.arange(len(series)), (_PERMUTATIONS, 1)), axis=1)
    permuted = _gains(series[orders])[:, places].max(axis=1)
    return float((1 + (permuted >= gain - 1e-9).sum()) / (1 + _PERMUTATIONS))


def _change(series: Floats, at: int, low: int, high: int, p: float, rng: np.random.Generator) -> Change:
    """The change with each column's own p-value at this very place."""
    place = slice(at - low - SHORTEST, at - low - SHORTEST + 1)
    columns = [series[low:high, index, None] for index in range(series.shape[1])]
    gains = [float(_gains(column[None])[0, place][0]) for column in columns]
    shares = [_share_reaching(gain, column, rng, place) for gain, column in zip(gains, columns, strict=True)]
    return Change(at, p, tuple(shares))


def _best_two(series: Floats) -> tuple[int, int]:
    """The places of the two changes with the least sum of squares within the three segments."""
    length = len(series)
    sums = np.concatenate([np.zeros((1, series.shape[1])), series.cumsum(axis=0)])

    def explained(low: Any, high: Any) -> Any:
        """How much of the total sum of squares a segment's mean takes away."""
        return ((sums[high] - sums[low]) ** 2).sum(-1) / (high - low)

    best, found = -np.inf, (SHORTEST, 2 * SHORTEST)
    for first in range(SHORTEST, length - 2 * SHORTEST + 1):
        seconds = np.arange(first + SHORTEST, length - SHORTEST + 1)
        total = explained(0, first) + explained(first, seconds) + explained(seconds, length)
        index = int(np.argmax(total))
        if total[index] > best:
            best, found = float(total[index]), (first, int(seconds[index]))
    return found
