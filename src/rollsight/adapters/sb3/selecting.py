"""Scores of a translated round, and a selection that this host can apply."""

from __future__ import annotations

from dataclasses import replace

import torch

from rollsight import targets
from rollsight.adapters import options
from rollsight.adapters.sb3.streams import restored_after_failure
from rollsight.adapters.sb3.translate import Translated
from rollsight.errors import RollsightError
from rollsight.scoring import Scores, score_records
from rollsight.scoring.score import Backend
from rollsight.selection import Rule, Selection


def score(
    translated: Translated,
    target: targets.Target,
    backend: Backend,
    optimizer: torch.optim.Optimizer | None,
    cross_fit: bool,
    round: int,
) -> Scores:
    """One score a step."""
    if isinstance(target, targets.Objective) and target.objective is None:
        target = replace(target, objective=translated.objective)
    scores = score_records(
        translated.policy,
        translated.scored,
        target,
        translated.objective,
        backend,
        optimizer,
        cross_fit=cross_fit,
        seed=round,
        on_policy=True,
        tokens=translated.position is not None,  # a recurrent policy's records are sequences of steps
    )
    return translated.per_step(scores)


def select(rule: Rule, scores: Scores, round: int) -> Selection:
    """The rule's selection.

    Raises:
        RollsightError: it has not one weight a record, weighs records, or leaves fewer than two.
    """
    with restored_after_failure():
        chosen = rule(scores)
    options.check_weights(chosen, scores, "records")
    kept = int((chosen.weights > 0).sum())
    if kept < min(2, len(scores)):
        raise RollsightError(
            f"The selection leaves {kept} of {len(scores)} records in round {round}; keep at least 2 (min_keep=)."
        )
    return chosen
