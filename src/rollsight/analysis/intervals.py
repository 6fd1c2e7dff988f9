"""A value with its 95 % interval: Student's of a mean, or percentiles of resampled values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes a second to import

from rollsight.arrays import Floats


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval.

    value: the mean, or whatever statistic it is.
    low: the lower end; NaN where there is no interval, as for one value.
    high: the upper end.
    n: number of values it is of; 0 where that is not counted.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    n: int = 0

    @property
    def half_width(self) -> float:
        """Of a symmetric interval; nan where there is none."""
        return self.high - self.value


UNKNOWN = Interval(float("nan"))


def t_interval(values: Sequence[float] | Floats) -> Interval:
    """The mean of the values (n,) and its t-interval; n at least 1, and no interval for 1."""
    sample = np.asarray(values, np.float64)
    n = len(sample)
    if n > 1 and np.ptp(sample) == 0:  # the mean of equal values is rounded, and they would deviate from it
        return Interval(float(sample[0]), float(sample[0]), float(sample[0]), n)
    mean = float(sample.mean())
    half_width = float(stdtrit(n - 1, 0.975) * sample.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    return Interval(mean, mean - half_width, mean + half_width, n)


def percentile_interval(value: float, resampled: Any, n: int = 0) -> Interval:
    """A value with the 2.5 and 97.5 percentiles of what resampling made of it (B,); what is not finite is left out, and
    where nothing is left there is no interval."""
    drawn = np.asarray(resampled, np.float64)
    known = drawn[np.isfinite(drawn)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return Interval(value, float(low), float(high), n)


def band(curves: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Mean and half-width (R,) of the t-interval over curves of R points each; one curve has half-widths nan."""
    intervals = [t_interval(column) for column in np.stack(curves).T]
    return np.array([one.value for one in intervals]), np.array([one.half_width for one in intervals])
