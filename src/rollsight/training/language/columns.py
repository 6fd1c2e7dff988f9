"""What a round of language-model PPO leaves in the run folder: a row for every sequence, and a one-row summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from rollsight.runs.columns import of_sequences, reasons
from rollsight.runs.summary import distribution, explained_variance, of_speed
from rollsight.training.language.ppo import Rollout, Update
from rollsight.training.language.settings import Options


def round_columns(
    round: int,
    rollout: Rollout,
    update: Update,
    options: Options,
    token_texts: Sequence[Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Every sequence of the round; lists hold its valid tokens only. token_texts: what `TokenTexts` says of them."""
    records = rollout.records
    tokens = of_sequences(records)
    groups = {prompt: number for number, prompt in enumerate(dict.fromkeys(rollout.prompts))}
    columns: dict[str, Any] = {
        "round": np.full(len(records), round),
        "episode": np.arange(len(records)),
        "group": [groups[prompt] for prompt in rollout.prompts],
        "prompt": rollout.prompts,
        "completion": rollout.texts,
        "length": tokens.pop("length"),
        "reward": rollout.rewards,
        "kl": rollout.kl.numpy(force=True),
        **tokens,
        "token_texts": [None] * len(records) if token_texts is None else token_texts,
    }
    if options.target != "none":
        columns[f"score_{options.target}"] = [None if np.isnan(s) else s for s in update.scores.tolist()]
    columns["kept"] = update.kept.numpy(force=True)
    columns["valid"] = records.valid_rows.numpy(force=True)
    columns["reason"] = reasons(columns["kept"], columns["valid"], update.reason)
    return columns


def round_summary(rollout: Rollout, update: Update, options: Options, times: dict[str, float]) -> dict[str, Any]:
    """The round in numbers."""
    n, dropped = len(rollout.texts), int((~update.kept).sum())
    lengths = rollout.records.valid.sum(1).double()
    assert isinstance(rollout.records.actions, Tensor)
    rows = [row[: int(k)].tolist() for row, k in zip(rollout.records.actions, lengths, strict=True)]
    scores = update.scores[~update.scores.isnan()]
    records = rollout.records
    seconds = {f"time_{phase}": spent for phase, spent in times.items()}
    return {
        "records": n,
        "valid": int(records.valid_rows.sum()),
        "invalid_rows": int((~records.valid_rows).sum()),
        "explained_variance": explained_variance(records.values, records.returns, records.valid.numpy(force=True)),
        "reward_mean": float(rollout.rewards.mean()),
        "reward_std": float(rollout.rewards.std()),
        "kl_mean": float(rollout.kl.mean()),
        "length_mean": float(lengths.mean()),
        "empty": sum(not text for text in rollout.texts),
        "distinct_1": distinct(rows, 1),
        "distinct_2": distinct(rows, 2),
        "scored": len(scores) > 0,
        "target": None if options.target == "none" else options.target,
        **distribution(scores),
        "semantic": "repack",
        "units_requested": dropped,  # no rule here has a floor, so what was asked for was dropped
        "units_dropped": dropped,
        "dropped": dropped,
        "kept_frac": 1 - dropped / n,
        **update.statistics,
        **seconds,
        **of_speed({"records": n, **seconds}),
        "message": update.message or None,
    }


def distinct(rows: Sequence[Sequence[object]], n: int) -> float | None:
    """Different n-grams per n-gram (Li et al. 2016), over all rows; a collapse shows as a fall."""
    grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
