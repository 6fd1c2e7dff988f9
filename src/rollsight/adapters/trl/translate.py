"""TRL's generation batch as `Records`, and its model and loss as a `Policy` and an `Objective`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rollsight import objectives
from rollsight.adapters.trl.loss import Batch, loss_mask
from rollsight.errors import RollsightError
from rollsight.language import Completions, completion_records
from rollsight.policy import Policy
from rollsight.records import Records

_COLUMNS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")


def policy_of(trainer: Any) -> Policy:
    """The model in training, called without TRL's fused head, through which no hook and no forward derivative goes, and
    with the positions of TRL's own forward."""
    return Policy(trainer.model, Completions(trainer.temperature, count_padding=True))


def objective_of(trainer: Any, algorithm: str) -> objectives.Objective:
    """The trainer's policy term, at the policy that made the batch. The KL and entropy terms are not part of it."""
    if algorithm == "rloo":
        return objectives.RLOO(trainer.epsilon_low, trainer.epsilon_high, on_policy=True)
    # At that policy "sapo" and "vespo" have the gradient of the loss with the same reduction.
    loss = {"sapo": "grpo", "vespo": "dapo"}.get(trainer.loss_type, trainer.loss_type)
    return objectives.GRPO(
        loss,
        trainer.epsilon_low,
        trainer.epsilon_high,
        trainer.importance_sampling_level,
        trainer.max_completion_length,
        on_policy=True,
    )


def records_of(batch: Batch, rewards: Tensor, round: int, group_size: int, first: int = 0) -> Records:
    """The generation batch, groups contiguous, as records of (N, T) tokens.

    rewards: (N,), NaN where no reward function gave one; such rows, which TRL trains with advantage 0, are invalid.
    first:   how many rows the processes before this one have.
    """
    missing = [name for name in _COLUMNS if name not in batch]
    if missing:
        raise RollsightError(
            f"The trainer's generation batch has no {', '.join(missing)}, so it cannot be scored; use TRL's own method."
        )
    if "pixel_values" in batch:
        raise RollsightError("The batch holds images, which are not scored; train a text model, or without attach.")
    rows = torch.arange(len(batch["advantages"]), device=batch["advantages"].device)
    mask = loss_mask(batch).bool() & torch.isfinite(rewards)[:, None]
    records = completion_records(
        batch["prompt_ids"],
        batch["prompt_mask"],
        batch["completion_ids"],
        batch["completion_mask"],
        torch.zeros_like(mask, dtype=torch.float32),  # not read: the objective is on-policy
        batch["advantages"],
        rewards=rewards.nan_to_num(0.0),
        ids={"round": torch.full_like(rows, round), "group": (first + rows) // group_size},
    )
    return replace(records, valid=mask)
