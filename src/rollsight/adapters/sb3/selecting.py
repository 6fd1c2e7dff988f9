"""Scores of a translated round, and a selection that this host can apply."""

from __future__ import annotations

from dataclasses import replace

import torch

from rollsight import targets
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
    """One score a step. "auto" is "jvp" for recurrent policies, whose scores per step no other fast backend gives."""
    if translated.position is not None and backend == "auto":
        backend = "jvp"
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
    )
    return translated.per_step(scores)


def select(rule: Rule, scores: Scores, round: int) -> Selection:
    """The rule's selection.

    Raises:
        RollsightError: it has not one weight a record, weighs records, or leaves fewer than two.
    """
    with restored_after_failure():
        chosen = rule(scores)
    if chosen.weights.shape != scores.values.shape:
        raise RollsightError(
            f"The selection has weights of shape {tuple(chosen.weights.shape)} for {len(scores)} records; "
            "give one per record."
        )
    if not bool(((chosen.weights == 0) | (chosen.weights == 1)).all()):
        raise RollsightError(
            "Stable-Baselines3 can leave records out but not weigh them; give a rule whose weights are 0 or 1."
        )
    kept = int((chosen.weights > 0).sum())
    if kept < min(2, len(scores)):
        raise RollsightError(
            f"The selection leaves {kept} of {len(scores)} records in round {round}; keep at least 2 (min_keep=)."
        )
    return chosen
