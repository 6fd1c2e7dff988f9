"""The columns of a round's Parquet file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rollsight.adapters.sb3.translate import Translated, evaluate_masked
from rollsight.runs import columns
from rollsight.runs.columns import Columns
from rollsight.runs.episodes import RoundEpisodes
from rollsight.scoring import Scores
from rollsight.selection import Selection


def round_columns(
    round: int,
    translated: Translated,
    episodes: RoundEpisodes,
    scores: Mapping[str, Scores],
    selection: Selection | None,
    *,
    entropy: bool = True,
) -> Columns:
    """Every record of the round, one row each, in the host's flat order (row = env * n_steps + step).

    entropy: whether the policy's is among them, which takes a forward.
    """
    more = {
        "episode": _env_major(episodes.episode),
        "episode_step": _env_major(episodes.episode_step),
        "reward": _env_major(episodes.reward),
        **({"entropy": columns.as_numpy(entropy_of(translated))} if entropy else {}),
        "episode_return": [None if np.isnan(x) else x for x in _env_major(episodes.episode_return)],
        "episode_start": list(_env_major(episodes.start)),
    }
    return columns.of_round(round, translated.records, _observations(translated), scores, selection, more)


def as_trained_on(buffer: Any) -> Columns:
    """The columns of a round with numbers that are not finite, which records leave out: the host does not."""

    columns = {"value": buffer.values, "advantage": buffer.advantages, "return": buffer.returns}
    columns |= {"log_prob": buffer.log_probs, "kept": np.ones_like(buffer.values, dtype=bool)}
    nothing_left_out = {"reason": pa.nulls(buffer.values.size, pa.string())}
    return {name: _env_major(column) for name, column in columns.items()} | nothing_left_out


def _env_major(column: Any) -> Any:
    return column.T.reshape(-1)


def entropy_of(translated: Translated) -> Tensor:
    """Policy entropy per step at the start of the round; one sample of it, -log pi, where there is no closed form."""
    with torch.no_grad():
        evaluation = translated.policy(translated.scored)
    entropy = -evaluation.log_prob if evaluation.entropy is None else evaluation.entropy
    return entropy if translated.position is None else entropy.reshape(-1)[translated.position]


def _observations(translated: Translated) -> Mapping[str, Tensor]:
    records = translated.records
    if isinstance(records.obs, Tensor):
        return {"obs": records.obs}
    if translated.policy.evaluate is evaluate_masked:
        return records.obs  # named there already, beside the masks
    return {f"obs.{name}": column for name, column in records.obs.items()}
