"""What the paper measures of two learning curves, and what we add: censoring, the null, intervals.

See docs/definitions.md, Metrics of learning curves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from rollsight.analysis.intervals import UNKNOWN, Interval, percentile_interval, t_interval
from rollsight.analysis.learning_curves import final_return
from rollsight.arrays import Bools, Floats
from rollsight.streams import stream
from rollsight.studies.curves import Curve
from rollsight.studies.results import row

_RESAMPLES = 2000
_HALVINGS = 200


@dataclass(frozen=True)
class Reduction:
    """What one curve saves against the standard one, each as a share: 0.3 is 30 % less.

    se_ave, se_peak: rounds, over the strictly increasing levels that the standard reached, and at its best level.
    rt_paper: time to the standard's best level, of the standard's whole time (what the published values equal).
    rt_peak: the same of the standard's time to that level. Both nan where the standard took none: it diverged at once.
    unreached: share of the levels never reached, which count as reached one round after the last (censored).
    """

    se_ave: float
    se_peak: float
    rt_paper: float
    rt_peak: float
    unreached: float


MEASURES = ("se_ave", "se_peak", "rt_paper", "rt_peak", "unreached")
_TIMES = ("rt_paper", "rt_peak")


def reduction(standard: Curve, other: Curve) -> Reduction:
    """What `other` saves against `standard`, two curves with the same schedule."""
    rounds, returns = standard["round"], standard["return"]
    best = np.maximum.accumulate(returns)
    rising = np.append(True, best[1:] > best[:-1])
    mine = [_reached(other, level) for level in best[rising].tolist()]
    when = np.array([other["round"][i] if i < len(rounds) else rounds[-1] + 1 for i in mine])
    saved = 1 - when / rounds[rising]
    peak = int(np.flatnonzero(rising)[-1])
    # One round after the last, at the time that the other's rounds take.
    time = other["seconds"][mine[-1]] if mine[-1] < len(rounds) else other["seconds"][-1] * (1 + 1 / rounds[-1])
    return Reduction(
        float(saved.mean()),
        float(saved[-1]),
        _less(time, standard["seconds"][-1]),
        _less(time, standard["seconds"][peak]),
        float(np.mean([i == len(rounds) for i in mine])),
    )


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of curves with the same schedule."""
    names = ("round", "return", "seconds")
    return Curve({name: np.mean([curve[name] for curve in curves], axis=0) for name in names})


@dataclass(frozen=True)
class Contrast:
    """One arm against the standard on common seeds.

    pairs: measure -> mean over pairs of seeds, with its t-interval.
    mean_curve: measure -> of the mean curves, with a bootstrap interval over seeds (pairs stay together).
    final: paired difference in final return.
    area: paired difference in the mean return over all rounds.
    probability: that a run of the arm ends above one of the standard.
    """

    pairs: dict[str, Interval]
    mean_curve: dict[str, Interval]
    final: Interval
    area: Interval
    probability: Interval

    def without_times(self) -> Contrast:
        """Without what is measured in seconds."""
        unknown = dict.fromkeys(_TIMES, UNKNOWN)
        return replace(self, pairs=self.pairs | unknown, mean_curve=self.mean_curve | unknown)

    def rows(self) -> Iterator[dict[str, object]]:
        """Rows of a long table, two for each measure."""
        for measure in MEASURES:
            for kind, found in (("pairs", self.pairs[measure]), ("mean_curve", self.mean_curve[measure])):
                yield row(f"{measure}_{kind}", found)


@dataclass(frozen=True)
class Null:
    """Standard against standard: what a measure shows where there is nothing to show.

    pairs: measure -> mean and standard deviation over all ordered pairs of seeds.
    mean_curve: measure -> the same of mean curves of random halves of the seeds.
    """

    pairs: dict[str, tuple[float, float]]
    mean_curve: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Summary:
    """One arm on its own.

    seeds: number of runs.
    final: mean final return with its t-interval.
    area: mean return over all rounds with its t-interval.
    final_iqm: interquartile mean of the final return with a stratified bootstrap interval.
    area_iqm: the same of the area.
    """

    seeds: int
    final: Interval
    area: Interval
    final_iqm: Interval
    area_iqm: Interval


def finals(curves: Sequence[Curve]) -> Floats:
    """(seeds,) mean returns over the last tenth of the rounds."""
    return np.array([final_return(curve["round"].astype(np.int64), curve["return"]) for curve in curves])


def areas(curves: Sequence[Curve]) -> Floats:
    """(seeds,) mean returns over all rounds."""
    return np.array([curve["return"].mean() for curve in curves])


def summarise(curves: Sequence[Curve]) -> Summary:
    """One arm's final returns and areas."""
    final, area = finals(curves), areas(curves)
    return Summary(len(curves), t_interval(final), t_interval(area), _bootstrap(_iqm, final), _bootstrap(_iqm, area))


def contrast(standard: Sequence[Curve], other: Sequence[Curve]) -> Contrast:
    """Compare curves of the same seeds, in the same order."""
    pairs = [reduction(one, two) for one, two in zip(standard, other, strict=True)]
    rng, resampled = stream(0), list[Reduction]()
    for _ in range(_HALVINGS if len(standard) > 1 else 0):
        chosen = rng.integers(len(standard), size=len(standard)).tolist()
        resampled.append(reduction(mean_curve([standard[i] for i in chosen]), mean_curve([other[i] for i in chosen])))
    whole = reduction(mean_curve(standard), mean_curve(other))
    one, two = finals(standard), finals(other)
    return Contrast(
        {name: _mean(_known(pairs, name)) for name in MEASURES},
        {name: percentile_interval(getattr(whole, name), _known(resampled, name)) for name in MEASURES},
        t_interval(two - one),
        t_interval(areas(other) - areas(standard)),
        _bootstrap(_superiority, two, one),
    )


def null_of(standard: Sequence[Curve]) -> Null | None:
    """Standard against itself; None for fewer than four seeds."""
    n = len(standard)
    if n < 4:
        return None
    pairs = [reduction(standard[i], standard[j]) for i in range(n) for j in range(n) if i != j]
    rng, halves = stream(0), list[Reduction]()
    for _ in range(_HALVINGS):
        order = rng.permutation(n).tolist()
        one, two = (mean_curve([standard[i] for i in part]) for part in (order[: n // 2], order[n // 2 :]))
        halves.append(reduction(one, two))
    return Null(*({name: _moments(_known(many, name)) for name in MEASURES} for many in (pairs, halves)))


def _reached(curve: Curve, level: float) -> int:
    """Index of the first evaluation at or above the level; their number where there is none."""
    above = np.flatnonzero(curve["return"] >= level)
    return int(above[0]) if len(above) else len(curve["return"])


def _less(time: float, standard: float) -> float:
    return float(1 - time / standard) if standard > 0 else float("nan")


def _mean(values: Floats) -> Interval:
    return t_interval(values) if len(values) else UNKNOWN


def _known(reductions: Sequence[Reduction], name: str) -> Floats:
    values: Floats = np.array([getattr(one, name) for one in reductions])
    known: Floats = values[~np.isnan(values)]
    return known


def _iqm(values: Floats) -> Any:
    """Over the last axis."""
    return stats.trim_mean(values, 0.25, axis=-1)


def _superiority(one: Floats, other: Floats) -> Any:
    """Share of the pairs over the last axes in which `one` is above, ties counting half."""
    return (np.sign(one[..., :, None] - other[..., None, :]) / 2 + 0.5).mean((-2, -1))


def _bootstrap(statistic: Callable[..., Any], *samples: Floats) -> Interval:
    """Each sample is a stratum, resampled on its own."""
    value = float(statistic(*samples))
    if min(map(len, samples)) < 2:
        return Interval(value)
    rng = stream(0)
    return percentile_interval(value, statistic(*(rng.choice(s, (_RESAMPLES, len(s))) for s in samples)))


def _moments(values: Floats) -> tuple[float, float]:
    if len(values) < 2:
        return np.nan, np.nan
    return float(np.mean(values)), float(np.std(values, ddof=1))


def auroc(scores: Floats, tagged: Bools) -> float:
    """The probability that a tagged record stands above another one, ties counted by half."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    positive = int(tagged.sum())
    return float((rank[tagged].sum() - positive * (positive + 1) / 2) / (positive * (len(scores) - positive)))
