"""Rankings of records compared with their tags, and by what leaving out their first records does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rollsight.analysis.culprits.scores import AnyBehaviour
from rollsight.arrays import Bools, Floats
from rollsight.errors import RollsightError
from rollsight.studies.metrics import auroc


class NothingLearntError(RollsightError):
    """The run ends without the behaviour."""


def compared(
    behaviour: AnyBehaviour, rankings: Mapping[str, Floats], tagged: Bools, round: Any, replayed: Sequence[int], at: int
) -> dict[str, Any]:
    """How each ranking finds the tagged records, and what its first ones taught.

    rankings: (N,) each, higher is more suspect; "random" among them. round: (N,) of each record. replayed: rounds. at:
    precision at so many.
    """
    found = {
        name: {
            "auroc": auroc(scores, tagged),
            f"precision at {at}": float(tagged[np.argsort(-scores, kind="stable")[:at]].mean()),
        }
        for name, scores in rankings.items()
    }
    everything = {**rankings, "the tags themselves": tagged.astype(float)}
    return {"found": found, "left out": left_out(behaviour, everything, tagged, round, replayed)}


def left_out(
    behaviour: AnyBehaviour, rankings: Mapping[str, Floats], tagged: Bools, round: Any, replayed: Sequence[int]
) -> dict[str, float | None]:
    """Mean over replayed rounds of log pi without a ranking's first k records less log pi without k random ones; k is
    how many records of the round are tagged. None where no round has any."""
    gained: dict[str, list[float]] = {name: [] for name in rankings if name != "random"}
    for number in replayed:
        mine = np.flatnonzero(round == number)
        k = int(tagged[mine].sum())
        if k == 0:
            continue
        frozen = behaviour.rounds.open(number)
        after = {}
        for name, scores in rankings.items():
            weights = frozen.weights.clone()
            weights[torch.from_numpy(np.argsort(-scores[mine], kind="stable")[:k].copy())] = 0
            after[name] = behaviour.log_prob(frozen.after(weights), frozen.records)
        for name, values in gained.items():
            values.append(after[name] - after["random"])
    return {name: float(np.mean(values)) if values else None for name, values in gained.items()}
