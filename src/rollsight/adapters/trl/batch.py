"""A generation batch as scoring sees it, over all processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rollsight.adapters.trl.loss import Batch
from rollsight.adapters.trl.translate import records_of
from rollsight.errors import RollsightError
from rollsight.records import Records


@dataclass(frozen=True, eq=False)
class Seen:
    """Completions of one process as records, and what is known of the n completions of all processes.

    records: this process's completions.
    own: which of the n completions are this process's.
    rewards: (n, F) by reward function, NaN where it gave none.
    total: (n,) weighted sum of the rewards, NaN where no function gave one.
    valid: (n,) completions with something to score.
    tokens: (n,) number of tokens in the loss.
    pulls: whether some valid completion has an advantage other than 0.
    differ: whether the rewards of the completions are not all the same.
    """

    records: Records
    own: slice
    rewards: Tensor
    total: Tensor
    valid: Tensor
    tokens: Tensor
    pulls: bool
    differ: bool


def own_records(trainer: Any, batch: Batch, rewards: Tensor | None, round: int) -> tuple[Records, slice]:
    """This process's completions as records, and which of all processes' they are. rewards: (n, F), of all."""
    n = len(batch["advantages"])
    own = slice(trainer.accelerator.process_index * n, (trainer.accelerator.process_index + 1) * n)
    if rewards is None or len(rewards) != n * trainer.accelerator.num_processes:
        raise RollsightError("The trainer's rewards are not those of TRL's _calculate_rewards; use TRL's own method.")
    total = total_reward(trainer, rewards).to(batch["advantages"].device)
    return records_of(batch, total[own], round, trainer.num_generations, own.start), own


def seen(trainer: Any, records: Records, own: slice, rewards: Tensor) -> Seen:
    """The same with what all processes need to know of one another; all of them call it."""
    gather = trainer.accelerator.gather
    total = total_reward(trainer, rewards).to(records.log_probs.device)
    valid, tokens = gather(records.valid_rows), gather(records.valid.sum(1))
    pulling = gather(records.advantages.reshape(len(records), -1).any(1))
    return Seen(
        records,
        own,
        rewards.cpu(),
        total,
        valid,
        tokens,
        pulls=bool(pulling[valid].any()),
        differ=len(torch.unique(total[valid])) > 1,
    )


def total_reward(trainer: Any, rewards: Tensor) -> Tensor:
    """(n,) weighted sum over the reward functions, from (n, F); NaN where none of them gave a reward."""
    total = (rewards * trainer.reward_weights.to(rewards.device)).nansum(1)
    return torch.where(torch.isnan(rewards).all(1), torch.nan, total)
