"""Scores from the backward of TRL's own training: where that applies, and a generation batch on its way through it.

With one optimiser step per generation batch every gradient of the batch is taken at the policy that made it. So its
completions need no forward and backward of their own: their gradients are captured in training's, and scores and
selection are made of them before the step, which then takes the sum over the kept ones.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rollsight.adapters.trl import trial
from rollsight.adapters.trl.batch import Seen
from rollsight.adapters.trl.loss import Batch, factor_of_kept
from rollsight.adapters.trl.scoring import Scoring
from rollsight.adapters.trl.translate import policy_of
from rollsight.distributed import all_reduced, everyone, size
from rollsight.errors import OptionError, RollsightError
from rollsight.scoring.gradients import Direction
from rollsight.scoring.in_backward import RecordGradients, all_linear, gradient_bytes
from rollsight.scoring.layers import Layers

Way = Literal["auto", "in_backward", "own_pass"]
ROWS = "influence_rows"  # the entry of a batch that says which of the process's completions its rows are


def chosen(way: str, trainer: Any, scoring: Scoring, most_bytes: int) -> bool:
    """Whether scores come from training's own backward. Raises `RollsightError` where that is asked for and does not
    apply; where it is not asked for, a line of the log says why."""
    if way not in get_args(Way):
        raise OptionError(f"{{scoring}} is unknown; give {', '.join(get_args(Way))}.", scoring=way)
    if isinstance(most_bytes, bool) or not isinstance(most_bytes, int) or most_bytes < 0:
        raise OptionError("{gradient_bytes} is not a number of bytes; give 0 or more.", gradient_bytes=most_bytes)
    if way == "own_pass":
        return False
    why = _settings(trainer, scoring) or _model(trainer, scoring) or _memory(trainer, most_bytes)
    if why and way == "in_backward":
        raise OptionError(f"{{scoring}} does not apply: {why}; use scoring='auto'.", scoring=way)
    if why:
        logging.getLogger("rollsight").info("completions are scored in a pass of their own: %s", why)
    return not why


def _settings(trainer: Any, scoring: Scoring) -> str:
    """Why these settings need a pass of their own; empty where they do not."""
    args, given = trainer.args, scoring.options
    micro_batches = args.gradient_accumulation_steps
    own = next((target.name for target in scoring.targets if target.records is not None), None)
    corrected = getattr(trainer, "use_vllm", False) and getattr(trainer, "vllm_importance_sampling_correction", False)
    reasons = {
        f"a generation batch has {trainer.num_iterations} iterations (num_iterations)": trainer.num_iterations > 1,
        f"a generation batch has {args.steps_per_generation} micro-batches (steps_per_generation) and an optimiser "
        f"step {micro_batches} (gradient_accumulation_steps)": args.steps_per_generation != micro_batches,
        f"the KL term (beta={trainer.beta}) is in training's gradients": scoring.algorithm == "grpo" and trainer.beta,
        "the entropy bonus is in training's gradients": getattr(trainer, "_entropy_bonus_enabled", False),
        "the router's loss is in training's gradients": getattr(trainer, "aux_loss_enabled", False),
        "top_entropy_quantile leaves tokens out of training's gradients": getattr(trainer, "top_entropy_quantile", 1)
        < 1,
        "vLLM's correction weighs a completion's tokens differently": corrected
        and str(getattr(trainer, "vllm_importance_sampling_mode", "token")).startswith("token"),
        "cross_fit=True": given["cross_fit"],
        f"backend={given['backend']!r}": given["backend"] not in ("auto", "layerwise"),
        f"the target {own!r} has records of its own": own is not None,
        "fp16=True scales the gradients": args.fp16,
        "torch_compile=True": args.torch_compile,
        f"one process trains on {args.n_gpu} cards": args.n_gpu > 1,
        "the parameters are sharded": trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled,
    }
    return next((text for text, holds in reasons.items() if holds), "")


def _model(trainer: Any, scoring: Scoring) -> str:
    """Why this model needs a pass of its own."""
    layers = Layers(policy_of(trainer))
    if not all_linear(layers):
        return "parameters outside linear layers are trained"
    if len({p.device for p in layers.parameters.values()}) > 1:
        return "the model is on several devices"
    try:
        trial.check_captured(trainer, scoring.algorithm, scoring.targets)
    except RollsightError as error:
        return str(error).rstrip(".")
    return ""


def _memory(trainer: Any, most: int) -> str:
    """Why the memory does not do."""
    rows = trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation
    needed = gradient_bytes(Layers(policy_of(trainer)), rows)
    if needed <= most:
        return ""
    return f"the gradients of {rows} completions take {needed / 2**20:,.0f} MiB (gradient_bytes={most})"


@dataclass(frozen=True, eq=False)
class Window:
    """A generation batch from its making to its optimiser step.

    found: its completions.
    gradients: their own gradients, of this process's.
    batch: the generation batch of this process.
    tokens: (n,) loss tokens of all processes' completions.
    seconds: what has gone into it before training began.
    """

    found: Seen
    gradients: RecordGradients
    batch: Batch
    tokens: Tensor
    seconds: float

    @classmethod
    def of(cls, trainer: Any, found: Seen, batch: Batch, tokens: Tensor, started: float) -> Window:
        """started: when its making began, in `time.perf_counter`'s seconds."""
        gradients = RecordGradients(Layers(policy_of(trainer)), len(found.records))
        return cls(found, gradients, batch, tokens, time.perf_counter() - started)

    def marked(self) -> Batch:
        """The batch that says which rows are which, whatever becomes of their order."""
        return {**self.batch, ROWS: torch.arange(len(self.found.records), device=self.batch["advantages"].device)}

    def checked(self) -> Window:
        """This one. `RollsightError` where its gradients are not those of the optimiser's next step."""
        trained = {name: p.grad for name, p in self.gradients.parameters.items()}
        self.gradients.check(trained, everyone())
        return self

    def gradient_of_kept(self, kept: Tensor, loss: str) -> Direction:
        """Of the step on the kept rows alone, as all processes have it. kept: (n,) of all processes."""
        weights = kept[self.found.own] * factor_of_kept(self.batch, kept, self.tokens, loss)
        total, group = self.gradients.weighted_sum(weights), everyone()
        if group is None:
            return total
        return {name: g / size() for name, g in all_reduced([total], group)[0].items()}

    def train_with(self, gradient: Direction) -> None:
        """Put it in the place of the one that training has computed."""
        for name, p in self.gradients.parameters.items():
            if p.grad is not None:
                p.grad.copy_(gradient[name])


def whole(trainer: Any) -> bool:
    """Whether the generation batch being made is trained on in one optimiser step, from its first micro-batch on: not
    outside training, in the last, shorter step of an epoch, or where steps and generation have come out of time."""
    args = trainer.args
    return bool(
        trainer.is_in_train
        and trainer.current_gradient_accumulation_steps == args.steps_per_generation
        and trainer._step % args.steps_per_generation == 0
        and all(p.grad is None for p in trainer.model.parameters())
    )
