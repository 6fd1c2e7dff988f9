"""What the picture and the page of a behaviour's development show, and where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollsight.analysis.phases.formation import Development, Formation
from rollsight.arrays import Floats


def rough_rounds(rounds: Sequence[Formation]) -> Floats:
    """(4, n) of the rounds that have a roughness: their numbers, roughness, and the ends of its null band."""
    known = [(one.round, one.roughness, *one.null) for one in rounds if one.roughness is not None and one.null]
    return np.array(known, np.float64).reshape(-1, 4).T


def frame(result: Development) -> Floats:
    """(2, 2), [[left, right], [bottom, top]] of the map of embeddings, the same for all rounds."""
    every = np.concatenate([points for one in result.rounds for points in (one.background, one.places)])
    low, high = every.min(0), every.max(0)
    margin = 0.05 * (high - low) + 1e-9
    return np.stack([low - margin, high + margin], 1)
