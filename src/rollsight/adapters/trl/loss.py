"""Leaving completions out of TRL's losses, so that training equals training on the completions that are kept.

No row is removed: every process takes the same steps on tensors of the same shape. A dropped row leaves the loss mask,
and the normalisers of the whole batch, which TRL fixes before the drop, become those of the kept rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

KEPT, SCALE = "influence_kept", "influence_scale"  # the entries that a batch with dropped rows carries

# What TRL's loss divides by over the whole batch: rows, or loss tokens through the batch's `num_items_in_batch`. "bnpo"
# divides by the tokens of each micro-batch.
ROW_MEANS = ("grpo", "sapo", "dr_grpo", "luspo", "rloo")
TOKEN_MEANS = ("dapo", "cispo", "vespo")
LOSSES = (*ROW_MEANS, *TOKEN_MEANS, "bnpo")

Batch = dict[str, Any]


def loss_mask(batch: Batch) -> Tensor:
    """(N, T): 1 at the tokens that the loss is over."""
    mask: Tensor = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def leave_out(batch: Batch, kept: Tensor, tokens: Tensor, own: slice, loss: str) -> Batch:
    """This process's part of the generation batch, marked so that `weighted` trains on the kept rows only. Advantages
    stay as they are; a batch that keeps every row is returned as it is.

    kept, tokens: (N,) of all processes, booleans and numbers of loss tokens; own: where this process's rows are.
    """
    if bool(kept.all()):
        return batch
    kept_tokens = (tokens * kept).sum()
    scale = torch.ones((), device=kept.device)
    if loss in ROW_MEANS:
        scale = scale * len(kept) / kept.sum()
    elif loss == "bnpo":
        scale = scale * tokens.sum() / kept_tokens.clamp(min=1)
    marked = {**batch, KEPT: kept[own], SCALE: scale}
    if "num_items_in_batch" in batch:
        marked["num_items_in_batch"] = kept_tokens.to(batch["num_items_in_batch"])
    return marked


def factor_of_kept(batch: Batch, kept: Tensor, tokens: Tensor, loss: str) -> Tensor:
    """() what the kept rows' own gradients in the loss of the whole batch are multiplied by, so that their sum is the
    gradient of training on the kept rows. batch, kept, tokens: as for `leave_out`, before it."""
    if loss in ROW_MEANS:
        return len(kept) / kept.sum()
    whole = tokens.sum() if loss == "bnpo" else batch["num_items_in_batch"]
    return whole.clamp(min=1) / (tokens * kept).sum().clamp(min=1)


def weighted(batch: Batch, loss: str) -> tuple[Batch, float]:
    """A micro-batch of a batch from `leave_out`, as TRL's loss takes it, and the factor of its KL coefficient."""
    batch = dict(batch)
    kept, scale = batch.pop(KEPT), float(batch.pop(SCALE))
    advantages: Tensor = batch["advantages"]
    if loss == "rloo":  # one clipped term per row, linear in its advantage, and nothing else
        return {**batch, "advantages": torch.where(kept, advantages * scale, 0.0)}, 1.0
    # The tool mask is in the loss mask only: a dropped row is still attended to and keeps finite log-probabilities.
    mask = loss_mask(batch)
    left = mask * kept[:, None]
    if loss == "bnpo":
        scale *= float(left.sum() / mask.sum().clamp(min=1))
    batch["tool_mask"] = left
    return {**batch, "advantages": advantages * scale}, scale


def loss_of_kept(trainer: Any, host: Callable[[Any, Batch], Tensor], model: Any, inputs: Batch, loss: str) -> Tensor:
    """What `host`, the trainer's own loss, gives of a micro-batch of a batch from `leave_out`."""
    batch, scale = weighted(inputs, loss)
    beta = trainer.beta
    trainer.beta = beta * scale
    try:
        return host(model, batch)
    finally:
        trainer.beta = beta


class EmptySteps(TrainerCallback):
    """Makes an optimiser step whose every completion was dropped a true no-op: with zero gradients Adam still moves."""

    def __init__(self, trainer: Any) -> None:
        self.kept = 0
        self._trainer = trainer

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        accelerator = self._trainer.accelerator
        if not bool(accelerator.reduce(torch.tensor(self.kept, device=accelerator.device), "sum")):
            self._trainer.model.zero_grad(set_to_none=True)
        self.kept = 0
