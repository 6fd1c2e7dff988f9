"""Scores of a generation batch, and the selection that a rule makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rollsight import targets
from rollsight.adapters import options
from rollsight.adapters.trl.batch import Seen
from rollsight.adapters.trl.translate import objective_of, policy_of
from rollsight.distributed import everyone, gathered_scores
from rollsight.errors import RollsightError
from rollsight.objectives import Objective
from rollsight.records import Records
from rollsight.scoring import Scores, score_records
from rollsight.scoring.in_backward import RecordGradients, score_captured
from rollsight.selection import Rule, Selection
from rollsight.targets import Target


@dataclass(frozen=True)
class Scoring:
    """How completions are scored.

    algorithm: "grpo" or "rloo"; decides the objective.
    targets: what is explained; the first one decides a selection.
    options: further options of `score_records`.
    precondition: whether to divide by the second moments of the trainer's optimiser.
    """

    algorithm: str
    targets: list[Target]
    options: Mapping[str, Any]
    precondition: bool

    @property
    def columns(self) -> list[str]:
        """Of the trainer's completions table, one for each target, then which are kept."""
        return [*(f"influence_{target.name}" for target in self.targets), "influence_kept"]

    def of(
        self, trainer: Any, seen: Seen, target: Target, round: int, gradients: RecordGradients | None = None
    ) -> Scores:
        """The scores of all processes' completions. Where nothing pulls (no advantage, or the same reward for all),
        they are 0, without computing. gradients: the completions' own, where training's backward has given them."""
        group = everyone()
        silent = not seen.pulls or (isinstance(target, targets.Reward) and not seen.differ)
        found = _zeros(seen.records, target) if silent else None
        if found is None and gradients is not None:
            found = self._captured(trainer, seen.records, target, gradients)
        if found is None:
            found = self._computed(trainer, seen.records, target, round)
        return found if group is None else gathered_scores(found, group)[0]

    def _captured(self, trainer: Any, records: Records, target: Target, gradients: RecordGradients) -> Scores | None:
        objective = objective_of(trainer, self.algorithm)
        return score_captured(
            gradients,
            policy_of(trainer),
            records,
            measured_as_trained(target, objective),
            objective,
            optimizer=self._optimizer(trainer),
            leave_self_out=self.options["leave_self_out"],
            group=everyone(),
        )

    def _computed(self, trainer: Any, records: Records, target: Target, round: int) -> Scores:
        objective = objective_of(trainer, self.algorithm)
        return score_records(
            policy_of(trainer),
            records,
            measured_as_trained(target, objective),
            objective,
            optimizer=self._optimizer(trainer),
            seed=round,
            group=everyone(),
            **self.options,
        )

    def _optimizer(self, trainer: Any) -> Any:
        return getattr(trainer.optimizer, "optimizer", trainer.optimizer) if self.precondition else None


def measured_as_trained(target: Target, objective: Objective) -> Target:
    """The target; "objective" as the trainer's own."""
    if isinstance(target, targets.Objective) and target.objective is None:
        return targets.Objective(objective, target.records, target.name)
    return target


def selected(rule: Rule, scores: Scores) -> Selection:
    """What the rule makes of the scores. Raises `RollsightError` where the trainer cannot train on that."""
    chosen = rule(scores)
    options.check_weights(chosen, scores, "completions")
    if not bool(chosen.weights[scores.valid].any()):
        raise RollsightError(
            f"The selection leaves none of the {int(scores.valid.sum())} completions; keep at least one (min_keep=)."
        )
    return chosen


def _zeros(records: Records, target: Target) -> Scores:
    zeros = torch.zeros(len(records), device=records.log_probs.device)
    return Scores(zeros, None, records.ids, records.valid_rows, target.name, "raw", "none", "nothing pulls")
