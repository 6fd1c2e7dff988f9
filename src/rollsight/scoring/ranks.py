"""Rank correlation, without SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from rollsight.arrays import Floats


def spearman(one: Any, other: Any) -> float:
    """Spearman's correlation of two columns (n,), arrays or CPU tensors, with average ranks for ties.

    nan where one side is constant or there are under 3 records: two always rank alike or the other way round.
    """
    if len(one) < 3:
        return float("nan")
    a, b = (_centred_ranks(np.asarray(column, np.float64)) for column in (one, other))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else float("nan")


def _centred_ranks(values: Floats) -> Floats:
    order = values.argsort()
    ordered = values[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    ends = np.append(starts[1:], len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((starts + ends - len(values)) / 2, ends - starts)
    return ranks
