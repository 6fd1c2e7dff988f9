"""Can a round's scores be believed? One sentence from its trust line, for the top of every page that shows scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rollsight.explorer.theme import number

Verdict = Literal["believable", "weak", "noise", "unknown"]


@dataclass(frozen=True)
class Trust:
    """What the trust line says of a round.

    Attributes:
        verdict: "noise" where halves of the round agree no better than with permuted advantages.
        sentence: the verdict with the figures behind it.
        caution: what else a reader must know, as that dropping made the step longer; "" where there is nothing.
    """

    verdict: Verdict
    sentence: str
    caution: str = ""


def trust_of(summary: Mapping[str, Any]) -> Trust:
    """summary: the round's row of the table `rounds`."""
    if summary.get("scored") is False:
        return Trust("unknown", "This round was not scored.")
    halves, permuted = _float(summary.get("trust_split_half")), _float(summary.get("trust_split_half_permuted"))
    ratio = _float(summary.get("trust_gradient_ratio"))
    caution = ""
    if ratio is not None and ratio > 1.5 and (summary.get("units_dropped") or 0) > 0:
        caution = f"Dropping made the mean gradient {number(ratio)} times as long: compare with a larger learning rate."
    if halves is None:
        return Trust("unknown", "No trust line was computed for this round: check with rollsight fidelity.", caution)
    figures = f"rank agreement of halves {number(halves, 2)}"
    if permuted is not None:
        figures += f", with permuted advantages {number(permuted, 2)}"
    chance = max(permuted or 0.0, 0.0)
    if halves < max(0.2, chance + 0.1):
        return Trust("noise", f"{figures}: this ranking is mostly noise.", caution)
    if halves < 0.6:
        return Trust("weak", f"{figures}: look at sums over episodes and environments, not at single records.", caution)
    return Trust("believable", f"{figures}: the ranking does not depend on which half it is measured on.", caution)


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
