"""What the page says of a round in numbers and words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
import numpy as np

from rollsight.explorer import components
from rollsight.explorer.rounds import Round
from rollsight.explorer.theme import DROPPED, HURT, number, percent

_MODES = {
    "repack": "Dropped records left the buffer, and minibatches were filled again: fewer optimiser steps.",
    "mask": "Minibatches stayed those of the full buffer; dropped records had no weight in them.",
}


def facts(round: Round, summary: Mapping[str, Any]) -> list[Any]:
    """The first line: what was dropped of what, and what the scores mean."""
    counts = {status: int((round.status == status).sum()) for status in ("kept", "dropped", "invalid")}
    scored = np.isfinite(round.scores)
    mass = np.abs(round.scores[scored]).sum()
    harmful = float(np.maximum(-round.scores[scored], 0).sum() / mass) if mass else None
    valid = counts["kept"] + counts["dropped"]
    mode = str(summary.get("semantic") or "–")
    fact, text = components.fact, components.text_of
    return [
        fact("Records", number(len(round))),
        fact("Kept", f"{number(counts['kept'])} ({percent(counts['kept'] / valid if valid else None)})"),
        fact(
            "Dropped",
            number(counts["dropped"]),
            "Records that left the update.",
            DROPPED if counts["dropped"] else None,
        ),
        fact("Invalid", number(counts["invalid"]), "Rows with nothing to train on, such as a step that only resets."),
        fact("Harmful mass", percent(harmful), "Share of the sum of absolute scores that is negative.", HURT),
        fact("Target", text(round.target or "–"), "What the scores explain: negative ones pushed it down."),
        fact("Drop mode", text(mode), _MODES.get(mode)),
        fact(
            "Counterfactual",
            "replay",
            "“Without these records” means: the same update from the same parameters, buffer and advantages. "
            "Nothing is played again.",
        ),
        fact("Normalisation", text(summary.get("normalisation") or "–"), "Of the advantages in the scores."),
        fact("Backend", text(summary.get("backend") or "–"), "How the scores were computed."),
    ]


def said(summary: Mapping[str, Any]) -> Any:
    """What the selection could not do as asked, and what failed while the round was watched."""
    given = [text for name in ("message", "warnings") if (text := summary.get(name))]
    return [
        dmc.Alert(components.text_of(text), color="orange", variant="light", mb="sm", py=6, className="rs-said")
        for text in given
    ]
