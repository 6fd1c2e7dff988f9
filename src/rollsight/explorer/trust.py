"""Can a round's scores be believed? One sentence from its trust line, for the top of every page that shows scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rollsight.explorer.theme import number

Verdict = Literal["believable", "weak", "noise", "unknown"]


@dataclass(frozen=True)
class Trust:
    """What the trust line says of a round.

    Attributes:
        verdict: "noise" where halves of the round agree no better than by chance; "weak" where only sums say something.
        sentence: the verdict with the figures behind it.
        caution: what else a reader must know, as that dropping made the step longer; "" where there is nothing.
    """

    verdict: Verdict
    sentence: str
    caution: str = ""


_LOW, _HIGH = 0.2, 0.6  # agreement below which a ranking is noise, from which single records can be looked at
_CHANCE, _FEW = 0.8, 5  # the quantile of what permuted advantages give, and rounds from which it is taken


def trust_of(summary: Mapping[str, Any], permuted: np.ndarray | None = None) -> Trust:
    """What the trust line says of a round.

    Args:
        summary: its row of the table `rounds`.
        permuted: (R,) `trust_split_half_permuted` of the run's rounds: what chance gives is a wide range where few
            directions make the gradient, and one permutation a round does not show it. Its own alone by default.
    """
    if summary.get("scored") is False:
        return Trust("unknown", "This round was not scored.")
    halves, own = _float(summary.get("trust_split_half")), _float(summary.get("trust_split_half_permuted"))
    ratio = _float(summary.get("trust_gradient_ratio"))
    caution = ""
    if ratio is not None and ratio > 1.5 and (summary.get("units_dropped") or 0) > 0:
        caution = f"Dropping made the mean gradient {number(ratio)} times as long: compare with a larger learning rate."
    if halves is None:
        return Trust("unknown", "No trust line was computed for this round: check with rollsight fidelity.", caution)
    figures, chance = f"rank agreement of halves {number(halves, 2)}", 0.0
    drawn = np.array([own if own is not None else np.nan] if permuted is None else permuted, dtype=np.float64)
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn):
        chance = float(np.quantile(np.abs(drawn), _CHANCE)) if len(drawn) >= _FEW else float(np.abs(drawn).max())
        figures += f", by chance up to {number(chance, 2)}"
    if halves < max(_LOW, chance):
        return Trust("noise", f"{figures}: this ranking is mostly noise.", caution)
    if halves < _HIGH:
        return Trust("weak", f"{figures}: look at sums over episodes and environments, not at single records.", caution)
    return Trust("believable", f"{figures}: the ranking does not depend on which half it is measured on.", caution)


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
