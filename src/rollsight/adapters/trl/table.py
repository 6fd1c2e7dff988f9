"""What a round leaves behind: columns in TRL's completions table, metrics in its log, rows of the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import transformers
import trl
from torch import Tensor

from rollsight.adapters.trl.batch import Seen
from rollsight.runs import summary
from rollsight.runs.columns import reasons
from rollsight.scoring import Scores
from rollsight.selection import Selection

_SETTINGS = (
    "loss_type",
    "beta",
    "num_generations",
    "steps_per_generation",
    "num_iterations",
    "gradient_accumulation_steps",
    "per_device_train_batch_size",
    "max_completion_length",
    "temperature",
    "scale_rewards",
    "epsilon",
    "epsilon_high",
    "importance_sampling_level",
)


def logged(trainer: Any, column: str, n: int) -> list[Any]:
    """The last n entries of a column of the trainer's completions log: those of the batch just generated."""
    entries = trainer._logs[column]
    return list(islice(entries, len(entries) - n, None))


def column_names(names: Sequence[str]) -> list[str]:
    """The reward functions' names, those after the first of a name numbered: `digits`, `digits_2`. SQL does not tell
    upper from lower case, so neither are names."""
    found: list[str] = []
    taken = {name.casefold() for name in names}
    for name in names:
        unique, number = name, 1
        while unique.casefold() in {one.casefold() for one in found} or (number > 1 and unique.casefold() in taken):
            number += 1
            unique = f"{name}_{number}"
        found.append(unique)
    return found


def add_columns(trainer: Any, columns: Mapping[str, list[Any]]) -> None:
    """Per-row columns of the completions table, for the rows just generated. The table's columns are windows of one
    length, so rows from before a column's first values, and rows of evaluation, are None in it."""
    for name, values in columns.items():
        column = trainer._logs["extra"][name]
        column.extend([None] * (len(trainer._logs["prompt"]) - len(values) - len(column)))
        column.extend(_short(value) for value in values)
        while len(column) > len(trainer._logs["prompt"]):  # a reward function logs a column of this name too
            column.popleft()


def _short(value: Any) -> Any:
    """Four digits of a score: more do not fit the table that TRL prints. The run folder has all of them."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def summary_of(
    trainer: Any,
    seen: Seen,
    scores: Scores | None,
    selection: Selection | None,
    kept: Tensor,
    seconds: float,
) -> summary.Summary:
    """The round in numbers. scores: those that decide the selection; seconds: what scoring took."""
    valid, tokens = seen.valid, seen.tokens
    advantages = np.array(logged(trainer, "advantages", len(valid)), np.float64)
    rewards = seen.total[~seen.total.isnan()].double()
    return {
        "step": trainer.state.global_step,
        "records": len(valid),
        "valid": int(valid.sum()),
        "invalid_rows": int((~valid).sum()),
        "reward_mean": float(rewards.mean()) if len(rewards) else None,
        "reward_std": float(rewards.std(correction=0)) if len(rewards) else None,
        "length_mean": float(tokens.double().mean()),
        "advantage_mean": float(advantages.mean()),
        "advantage_std": float(advantages.std()),
        **summary.of_scoring(valid, scores, selection, None, "mask, normalised over the kept"),
        "kept_tokens_frac": float((tokens * kept).sum() / tokens.sum().clamp(min=1)),
        "time_score": seconds,
    }


def report(
    trainer: Any, summed: summary.Summary, columns: list[str], scores: Mapping[str, Scores], kept: Tensor
) -> None:
    """Metrics to the trainer's log, and these columns, of which the last is what was kept, to its completions table."""
    for name in (*summary.LOGGED, "kept_tokens_frac"):
        if isinstance(value := summed.get(name), (int, float)):
            trainer._metrics["train"][f"influence/{name.removeprefix('score_')}"].append(float(value))
    values: dict[str, list[Any]] = dict.fromkeys(columns, [None] * len(kept))
    values |= {f"influence_{name}": one.values.tolist() for name, one in scores.items()}
    add_columns(trainer, values | {columns[-1]: kept.tolist()})


def run_columns(
    trainer: Any,
    round: int,
    seen: Seen,
    scores: Mapping[str, Scores],
    reason: str | Sequence[str | None],
    kept: Tensor,
) -> dict[str, Any]:
    """Every completion of the round, of all processes, one row each, in the order in which it was generated.

    reason: why some were dropped, as of `Selection`.
    """
    n = len(kept)
    columns: dict[str, Any] = {"round": np.full(n, round), "episode": np.arange(n)}
    columns["group"] = columns["episode"] // trainer.num_generations
    columns["prompt"] = [_text(prompt) for prompt in logged(trainer, "prompt", n)]
    columns["completion"] = [_text(completion) for completion in logged(trainer, "completion", n)]
    columns["length"] = seen.tokens.cpu().numpy()
    columns["reward"] = seen.total.cpu().numpy()
    names = column_names(trainer.reward_func_names)
    columns |= {f"reward_{name}": seen.rewards[:, i].numpy() for i, name in enumerate(names)}
    columns["advantage"] = logged(trainer, "advantages", n)
    columns |= {f"score_{name}": one.values.cpu().numpy() for name, one in scores.items()}
    columns["kept"] = kept.cpu().numpy()
    columns["valid"] = seen.valid.cpu().numpy()
    columns["reason"] = reasons(columns["kept"], columns["valid"], reason)
    return columns


def event_writers(trainer: Any) -> list[Any]:
    """The writers of TensorBoard's event files that the trainer's callbacks have open."""
    found = (getattr(callback, "tb_writer", None) for callback in trainer.callback_handler.callbacks)
    return [writer for writer in found if writer is not None]


def describe(trainer: Any, algorithm: str) -> dict[str, Any]:
    """What a run folder says about the trainer that wrote it, as plain values."""
    args, optimizer = trainer.args, trainer.optimizer
    return {
        "host": f"trl {trl.__version__}, transformers {transformers.__version__}",
        "algo": algorithm,
        "model": getattr(trainer.model.config, "_name_or_path", "") or type(trainer.model).__name__,
        "peft": type(trainer.model).__name__.startswith("Peft"),
        "seed": args.seed,
        "optimizer": None if optimizer is None else type(getattr(optimizer, "optimizer", optimizer)).__name__,
        "learning_rate": float(args.learning_rate),
        "rewards": column_names(trainer.reward_func_names),
        "reward_weights": trainer.reward_weights.tolist(),
        "settings": {name: getattr(args, name) for name in _SETTINGS if hasattr(args, name)},
    }


def _text(message: Any) -> str:
    """A prompt or completion as text; conversations as JSON."""
    return message if isinstance(message, str) else json.dumps(message, ensure_ascii=False, default=str)
