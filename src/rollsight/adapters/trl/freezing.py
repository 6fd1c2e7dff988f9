"""A generation batch frozen, so that it can be scored and its update replayed without TRL."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from torch import Tensor, nn

from rollsight.adapters.trl.loss import ROW_MEANS
from rollsight.records import Records
from rollsight.runs import jsonable
from rollsight.snapshot.language import LanguageRound


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def frozen_round(trainer: Any, algorithm: str, loss: str, records: Records, kept: Tensor, round: int) -> LanguageRound:
    """The round at the policy that generated it; to be saved before training goes on.

    loss: TRL's `loss_type`. kept: (N,) which completions stay in the update.
    """
    parameters = trained(trainer.model)
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    names = {id(p): name for name, p in parameters.items()}
    args = trainer.args
    update = {
        "host": "trl",
        "algorithm": algorithm,
        "loss": loss,
        "row_mean": loss in ROW_MEANS,
        "clip_low": float(trainer.epsilon_low),
        "clip_high": float(trainer.epsilon_high),
        "importance": str(getattr(trainer, "importance_sampling_level", "sequence")),
        "max_length": int(trainer.max_completion_length),
        "temperature": float(trainer.temperature),
        "passes": int(trainer.num_iterations),
        "steps": max(1, int(args.steps_per_generation) // int(args.gradient_accumulation_steps)),
        "max_grad_norm": float(args.max_grad_norm or 0.0),
        "optimizer": type(optimizer).__name__,
        "groups": [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups],
        "adapter": _adapter(trainer.model),
        "seed": int(args.seed),
    }
    return LanguageRound(round, parameters, optimizer.state_dict(), records, kept.float(), update)


def _adapter(model: nn.Module) -> Mapping[str, Any] | None:
    """The adapter's configuration as plain values; None where the model has none."""
    config = getattr(model, "active_peft_config", None)
    if config is None:
        return None
    entries = {name: value.value if isinstance(value, Enum) else value for name, value in config.to_dict().items()}
    given: dict[str, Any] = jsonable(entries)
    return given
