"""Why do the bottom records hurt? Statistics of influence, recorded advantage and Monte-Carlo advantage.

Pure functions of arrays with one entry per record. `A_hat` is the advantage in the buffer, GAE's with the behaviour
value function; `A_bar` the Monte-Carlo one of the same policy. Definitions: Hu et al. 2025, section 3 and appendix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from rollsight.analysis.intervals import percentile_interval
from rollsight.arrays import Array, Bools, Floats, Ints
from rollsight.scoring.ranks import spearman

QUINTILES = 5
PHASES = 10
_RESAMPLES = 2000
_ROUNDING = 1e-9  # two means over equal returns may differ by this much


@dataclass(frozen=True, eq=False)
class Chosen:
    """Rows of the records that are looked at.

    bottom: the lowest scores.
    top: the highest scores.
    random: a random sample of all records, extremes included.
    """

    bottom: Ints
    top: Ints
    random: Ints

    @property
    def groups(self) -> dict[str, Ints]:
        return {"bottom": self.bottom, "top": self.top, "random": self.random}

    @property
    def rows(self) -> Ints:
        """Each row once, ascending."""
        return np.unique(np.concatenate([self.bottom, self.top, self.random]))


@dataclass(frozen=True)
class Agreement:
    """How well A_hat agrees with A_bar over some records.

    records: number of them.
    counted: records whose |A_bar| exceeds two standard errors; only they can mismatch.
    mismatched: of those, the ones where A_hat has the other sign.
    share: mismatched / counted, NaN where none counts.
    difference: mean |A_bar - A_hat|, which includes the Monte-Carlo error.
    error: mean standard error of A_bar.
    """

    records: int
    counted: int
    mismatched: int
    share: float
    difference: float
    error: float


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with a 95 % percentile bootstrap interval.

    value: the correlation, NaN where there are too few records.
    low, high: ends of the interval.
    records: number of records.
    units: number of units of records that the bootstrap resamples.
    """

    value: float
    low: float
    high: float
    records: int
    units: int


@dataclass(frozen=True)
class Mass:
    """Part of the harmful mass, the sum of the negative scores.

    key: the action, phase or environment that it belongs to.
    mass: sum of the negative scores, as a positive number.
    share: share of the whole round's harmful mass.
    records: number of records.
    """

    key: int
    mass: float
    share: float
    records: int


def choose_records(scores: Floats, eligible: Bools, count: int, rng: np.random.Generator) -> Chosen:
    """The lowest and the highest quarter of `count` eligible records by score, and a random half, drawn uniformly.

    scores, eligible: (N,). A group is smaller where there are fewer records.
    """
    candidates = np.flatnonzero(eligible)
    order = candidates[np.argsort(scores[candidates], kind="stable")]
    extreme = min(count // 4, len(order))
    random = rng.choice(candidates, min(count - 2 * extreme, len(candidates)), replace=False)
    return Chosen(order[:extreme], order[::-1][:extreme], np.sort(random))


def quintile_of(scores: Floats, eligible: Bools) -> Ints:
    """(N,) 0 for the lowest fifth of the eligible records to 4; -1 for others. Equal scores share a quintile."""
    quintile = np.full(len(scores), -1)
    ranks = rankdata(scores[eligible])
    quintile[eligible] = np.floor(QUINTILES * (ranks - 0.5) / max(len(ranks), 1)).astype(np.int64)
    return quintile


def mismatches(a_bar: Floats, error: Floats, a_hat: Floats) -> tuple[Bools, Bools]:
    """Which records count, |A_bar| exceeding two standard errors, and which of them mismatch in sign. All (N,)."""
    counted = np.abs(a_bar) > 2 * error + _ROUNDING
    return counted, counted & (a_bar * a_hat < 0)


def agreement(a_bar: Floats, error: Floats, a_hat: Floats) -> Agreement:
    """Sign mismatches and distance of A_hat from A_bar. All (n,)."""
    counted, wrong = (int(x.sum()) for x in mismatches(a_bar, error, a_hat))
    return Agreement(
        len(a_bar),
        counted,
        wrong,
        wrong / counted if counted else np.nan,
        float(np.abs(a_bar - a_hat).mean()) if len(a_bar) else np.nan,
        float(error.mean()) if len(a_bar) else np.nan,
    )


def correlate(one: Floats, other: Floats, units: Array, rng: np.random.Generator) -> Correlation:
    """Rank correlation of (n,) columns; the interval resamples whole units (n,), as their records depend on each
    other: those of one episode, or the repeats of one (s, a)."""
    names, position = np.unique(units, return_inverse=True)
    members = np.split(np.argsort(position, kind="stable"), np.cumsum(np.bincount(position))[:-1])
    values = []
    for _ in range(_RESAMPLES if len(names) > 1 else 0):
        index = np.concatenate([members[unit] for unit in rng.integers(len(names), size=len(names))])
        values.append(spearman(one[index], other[index]))
    found = percentile_interval(spearman(one, other), values)
    return Correlation(found.value, found.low, found.high, len(one), len(names))


def harmful_mass(scores: Floats, keys: Ints, eligible: Bools) -> list[Mass]:
    """The sum of the negative scores by key, in the order of the keys. All (N,); negative keys are left out, but count
    in the whole that the shares refer to."""
    negative = np.where(eligible, np.minimum(scores, 0.0), 0.0)
    total = negative.sum()
    parts = []
    for key in np.unique(keys[eligible & (keys >= 0)]).tolist():
        inside = eligible & (keys == key)
        mass = float(negative[inside].sum())
        parts.append(Mass(key, mass, mass / total if total else 0.0, int(inside.sum())))
    return parts


def phase_of(episode: Ints, episode_step: Ints, lengths: Mapping[int, int]) -> Ints:
    """(N,) the tenth of its episode that a record stands in, 0 to 9; -1 where the episode's length is not known."""
    length = np.array([lengths.get(number, 0) for number in episode.tolist()])
    return np.where(length > 0, PHASES * episode_step // np.maximum(length, 1), -1)
