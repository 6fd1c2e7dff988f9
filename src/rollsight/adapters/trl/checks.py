"""What a trainer must be for its completions to be scored and left out, checked before training starts."""

from __future__ import annotations

from typing import Any

from torch import nn

from rollsight.adapters.trl.loss import LOSSES
from rollsight.errors import RollsightError


def check_trainer(trainer: Any, algorithm: str) -> None:
    """`RollsightError` in one sentence where this trainer cannot be attached to."""
    loss = loss_of(trainer, algorithm)
    if loss not in LOSSES:
        raise RollsightError(
            f"loss_type={loss!r} is not covered; use one of {', '.join(sorted({*LOSSES} - {'rloo'}))}."
        )
    if getattr(trainer.args, "use_liger_kernel", False):
        raise RollsightError(
            "use_liger_kernel=True replaces layers by kernels through which scores do not go; set it to False."
        )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise RollsightError(
            f"The parameters are sharded ({trainer.accelerator.distributed_type.value}), where scores are not "
            f"implemented; use one process, or data-parallel ones."
        )
    if getattr(getattr(trainer.model, "active_peft_config", None), "is_prompt_learning", False):
        raise RollsightError("Adapters that learn virtual prompt tokens are not covered; use LoRA, or no adapter.")
    for name, part in trainer.model.named_modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            remedy = "lora_dropout=0 in its LoraConfig" if "lora_dropout" in name else "disable_dropout=True"
            raise RollsightError(
                f"The layer {name!r} has dropout {part.p}: the gradients that are scored, without it, would not be "
                f"those of training; set {remedy}."
            )


def loss_of(trainer: Any, algorithm: str) -> str:
    """TRL's `loss_type`; "rloo" for RLOOTrainer, which has one loss."""
    return "rloo" if algorithm == "rloo" else str(trainer.loss_type)
