"""What a trainer must be for its completions to be scored and left out, checked before training starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from rollsight.adapters import options
from rollsight.adapters.trl import trial
from rollsight.adapters.trl.loss import LOSSES
from rollsight.adapters.trl.scoring import Scoring
from rollsight.errors import OptionError, RollsightError


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
    if getattr(trainer.model.config, "is_encoder_decoder", False):
        raise RollsightError(
            f"{type(trainer.model).__name__} is an encoder-decoder; completions are scored for causal language models "
            "only."
        )
    if getattr(getattr(trainer.model, "active_peft_config", None), "is_prompt_learning", False):
        raise RollsightError("Adapters that learn virtual prompt tokens are not covered; use LoRA, or no adapter.")
    if images := {"image", "images"} & set(getattr(trainer.train_dataset, "column_names", None) or ()):
        raise RollsightError(
            f"The training data has images (column {min(images)!r}), which are not scored; train a text model, or "
            "without attach."
        )
    if alpha := getattr(trainer, "neftune_noise_alpha", None):
        raise RollsightError(
            f"neftune_noise_alpha={alpha} adds noise to the embeddings in training: the gradients that are scored, "
            "without it, would not be those of training; set it to None."
        )
    for name, part in trainer.model.named_modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            remedy = "lora_dropout=0 in its LoraConfig" if "lora_dropout" in name else "disable_dropout=True"
            raise RollsightError(
                f"The layer {name!r} has dropout {part.p}: the gradients that are scored, without it, would not be "
                f"those of training; set {remedy}."
            )
    trial.check_not_random(trainer)


def check_scoring(trainer: Any, scoring: Scoring) -> None:
    """`RollsightError` in one sentence where the settings of scoring are wrong, or do not go with one another, with
    the targets or with this model."""
    given = scoring.options
    options.check_backend(given["backend"])
    rows = given["chunk_size"]
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise OptionError("{chunk_size} is not a number of completions; give 1 or more, or None.", chunk_size=rows)
    if both := {*scoring.columns} & {*trainer.reward_func_names}:
        raise RollsightError(
            f"The reward function {min(both)!r} has the name of a column that attach adds to TRL's completions table; "
            "rename it."
        )
    own = next((one.name for one in scoring.targets if one.records is not None), None)
    processes = trainer.accelerator.num_processes
    unlike: dict[str, Mapping[str, bool]] = {
        "cross_fit": {},
        "leave_self_out": {
            "{cross_fit}": given["cross_fit"],
            "{precondition}": scoring.precondition,
            "{backend}": given["backend"] not in ("auto", "layerwise"),
        },
    }
    alone = {f"{processes} processes": processes > 1, f"the target {own!r}, which has records of its own": bool(own)}
    for name, others in unlike.items():
        other = next((text for text, there in {**others, **alone}.items() if there), None)
        if given[name] and other is not None:
            raise OptionError(
                f"{{{name}}} does not go with {other}; use one of both.",
                cross_fit=given["cross_fit"],
                leave_self_out=given["leave_self_out"],
                precondition=scoring.precondition,
                backend=given["backend"],
            )
    trial.check_scorable(trainer, scoring.algorithm, given)


def loss_of(trainer: Any, algorithm: str) -> str:
    """TRL's `loss_type`; "rloo" for RLOOTrainer, which has one loss."""
    return "rloo" if algorithm == "rloo" else str(trainer.loss_type)
