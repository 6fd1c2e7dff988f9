"""The linear datamodeling score: do summed scores of the kept records rank the outcomes of training on them?

Park et al. 2023 (TRAK), equation 4, on one round: M random halves of the units, the round retrained on each from its
snapshot, and the Spearman correlation over the halves between the summed scores and the outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from rollsight.analysis.intervals import percentile_interval
from rollsight.arrays import Bools, Floats
from rollsight.errors import RollsightError
from rollsight.records import Records
from rollsight.streams import Purpose, stream

_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class HalfMasks:
    """M random halves of U units.

    kept: (M, U) booleans, exactly floor(U / 2) of each row.
    weights: (M, N) floats, 1 for the records of kept units.
    position: (N,) each record's unit, -1 for invalid records.
    """

    kept: Bools
    weights: Tensor
    position: Tensor

    @property
    def units(self) -> int:
        return int(self.kept.shape[1])

    def totals(self, scores: Tensor) -> Floats:
        """(U,) sums of the scores (N,) over each unit's records."""
        valid = self.position >= 0
        sums = torch.zeros(self.units, dtype=torch.float64)
        sums.index_add_(0, self.position[valid], scores.detach().cpu().double()[valid])
        return sums.numpy()


def half_masks(records: Records, unit: str, masks: int, seed: int) -> HalfMasks:
    """Random halves of the records' units: "record", or an identity such as "episode".

    Raises `RollsightError` for fewer than 4 units or masks, and for a unit that the records do not have.
    """
    if masks < 4:
        raise RollsightError(f"masks={masks} gives no rank correlation; use at least 4, 100 for a narrow interval.")
    valid = records.valid_rows.cpu()
    if unit == "record":
        column = torch.arange(len(records))
    elif unit in records.ids:
        column = records.ids[unit].cpu()
    else:
        known = ", ".join(["record", *records.ids])
        raise RollsightError(f"unit={unit!r} is not among the identities of these records ({known}).")
    units, inverse = column[valid].unique(return_inverse=True)
    if len(units) < 4:
        raise RollsightError(f"The round has {len(units)} {unit} units; halves need at least 4: use --unit record.")
    position = torch.full((len(records),), -1)
    position[valid] = inverse
    rng = stream(seed, Purpose.MASKS)
    kept = rng.random((masks, len(units))).argsort(1) < len(units) // 2
    padded = np.concatenate([kept, np.zeros((masks, 1), dtype=bool)], axis=1)  # column -1: invalid records
    return HalfMasks(kept, torch.from_numpy(padded[:, position.numpy()]).float(), position)


@dataclass(frozen=True)
class Row:
    """One score's LDS, and the paired difference to the reference's.

    lds: rank correlation over masks of the kept records' summed scores with the outcomes.
    low, high: its 95 % bootstrap interval over masks.
    difference: LDS minus the reference's.
    difference_low, difference_high: its 95 % bootstrap interval over masks.
    """

    lds: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float


@dataclass(frozen=True)
class Lds:
    """The LDS of several scores on one outcome.

    rows: score -> its LDS.
    ceiling: Spearman of the outcomes with those of another minibatch order: what the best score could reach.
    ceiling_low, ceiling_high: its 95 % bootstrap interval over masks.
    null_low, null_high: 2.5 and 97.5 % of the LDS of the reference score permuted over units.
    spread: standard deviation of the outcome over masks, in the outcome's units.
    """

    rows: Mapping[str, Row]
    ceiling: float
    ceiling_low: float
    ceiling_high: float
    null_low: float
    null_high: float
    spread: float


def lds(
    masks: HalfMasks, scores: Mapping[str, Tensor], outcomes: Floats, repeated: Floats, reference: str, seed: int
) -> Lds:
    """Compare scores, name -> (N,), with the outcomes (M,) of training on the masks.

    repeated: (M,) outcomes of the same masks in another minibatch order. reference: the score that differences are to.
    """
    totals = {name: masks.totals(column) for name, column in scores.items()}
    sums = np.stack([masks.kept @ column for column in totals.values()])
    counts = _resampled(len(outcomes), seed)
    point = _rank_correlations(np.vstack([sums, repeated]), outcomes, np.ones((1, len(outcomes))))[:, 0]
    drawn = _rank_correlations(np.vstack([sums, repeated]), outcomes, counts)
    base = list(scores).index(reference)
    rows = {}
    for i, name in enumerate(scores):
        low, high = _interval(drawn[i])
        below, above = _interval(drawn[i] - drawn[base])
        rows[name] = Row(float(point[i]), low, high, float(point[i] - point[base]), below, above)
    null = _null(masks, totals[reference], outcomes, seed)
    return Lds(rows, float(point[-1]), *_interval(drawn[-1]), *_interval(null), float(np.std(outcomes, ddof=1)))


def _null(masks: HalfMasks, totals: Floats, outcomes: Floats, seed: int) -> Floats:
    """(resamples,) LDS of the totals (U,) permuted over units."""
    rng = stream(seed, Purpose.SHUFFLED_SCORES)
    permuted = rng.permuted(np.tile(totals, (_RESAMPLES, 1)), axis=1)
    return _rank_correlations(permuted @ masks.kept.T.astype(np.float64), outcomes, np.ones((1, len(outcomes))))[:, 0]


def _resampled(n: int, seed: int) -> Floats:
    """(resamples, n) how often each mask is in each bootstrap resample."""
    rng = stream(seed, Purpose.BOOTSTRAP)
    return rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)


def _rank_correlations(columns: Floats, outcomes: Floats, counts: Floats) -> Floats:
    """(V, B) Spearman of each column (V, M) with the outcomes (M,) in samples that hold mask m counts[b, m] times.

    Average ranks within the resample, which are not those of the full sample; nan where one side is constant.
    """
    mine = _centred_ranks(outcomes, counts)
    result = np.empty((len(columns), len(counts)))
    for i, column in enumerate(columns):
        theirs = _centred_ranks(column, counts)
        covariance = (counts * mine * theirs).sum(1)
        scale = np.sqrt((counts * mine**2).sum(1) * (counts * theirs**2).sum(1))
        result[i] = np.divide(covariance, scale, out=np.full(len(counts), np.nan), where=scale > 0)
    return result


def _centred_ranks(values: Floats, counts: Floats) -> Floats:
    """(B, M) average ranks of the values (M,) in each resample, minus their mean there."""
    places = rankdata(values, "dense") - 1
    at = np.zeros((len(counts), int(places.max()) + 1))
    np.add.at(at.T, places, counts.T)
    ranks = (at.cumsum(1) - (at - 1) / 2)[:, places]
    return np.asarray(ranks - (counts * ranks).sum(1, keepdims=True) / counts.sum(1, keepdims=True))


def _interval(values: Floats) -> tuple[float, float]:
    found = percentile_interval(float("nan"), values)
    return found.low, found.high
