"""The columns of a round's Parquet file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rollsight.adapters.sb3.episodes import RoundEpisodes
from rollsight.adapters.sb3.translate import Translated, evaluate_masked
from rollsight.arrays import Array
from rollsight.scoring import Scores
from rollsight.selection import Selection
from rollsight.streams import Purpose, stream

_LARGE_OBSERVATION = 256  # numbers; larger ones are kept for a few records only
_EXTREMES, _SAMPLE = 32, 64

Columns = dict[str, Any]


def round_columns(
    round: int,
    translated: Translated,
    episodes: RoundEpisodes,
    scores: Mapping[str, Scores],
    selection: Selection | None,
) -> Columns:
    """Every record of the round, one row each, in the host's flat order (row = env * n_steps + step)."""
    records = translated.records
    n = len(records)

    kept = records.valid_rows.cpu().numpy() if selection is None else (selection.weights > 0).cpu().numpy()
    columns: Columns = {
        "round": np.full(n, round),
        "env": _numpy(records.ids["env"]),
        "step": _numpy(records.ids["step"]),
        "episode": _env_major(episodes.episode),
        "episode_step": _env_major(episodes.episode_step),
        "action": _narrow(_numpy(records.actions)),  # type: ignore[arg-type]
        "reward": _env_major(episodes.reward),
        "value": _numpy(records.values),
        "advantage": _numpy(records.advantages),
        "return": _numpy(records.returns),
        "log_prob": _numpy(records.log_probs),
        "entropy": _numpy(entropy_of(translated)),
    }
    columns |= {f"score_{name}": _numpy(score.values) for name, score in scores.items()}
    columns |= {
        "kept": kept,
        "valid": _numpy(records.valid_rows),
        "episode_return": [None if np.isnan(x) else x for x in _env_major(episodes.episode_return)],
    }
    ranking = next(iter(scores.values())).values if scores else records.advantages
    columns |= _observations(translated, _numpy(ranking), round)
    columns["episode_start"] = list(_env_major(episodes.start))
    return columns


def as_trained_on(buffer: Any) -> Columns:
    """The columns of a round with numbers that are not finite, which records leave out: the host does not."""

    columns = {"value": buffer.values, "advantage": buffer.advantages, "return": buffer.returns}
    columns |= {"log_prob": buffer.log_probs, "kept": np.ones_like(buffer.values, dtype=bool)}
    return {name: _env_major(column) for name, column in columns.items()}


def _env_major(column: Any) -> Any:
    return column.T.reshape(-1)


def entropy_of(translated: Translated) -> Tensor:
    """Policy entropy per step at the start of the round; one sample of it, -log pi, where there is no closed form."""
    with torch.no_grad():
        evaluation = translated.policy(translated.scored)
    entropy = -evaluation.log_prob if evaluation.entropy is None else evaluation.entropy
    return entropy if translated.position is None else entropy.reshape(-1)[translated.position]


def _observations(translated: Translated, ranking: Array, round: int) -> Columns:
    records = translated.records
    if isinstance(records.obs, Tensor):
        obs = {"obs": records.obs}
    elif translated.policy.evaluate is evaluate_masked:
        obs = dict(records.obs)  # named there already, with the masks
    else:
        obs = {f"obs.{name}": column for name, column in records.obs.items()}
    columns: Columns = {}
    for name, column in obs.items():
        values = _narrow(_numpy(column))
        if values[0].size <= _LARGE_OBSERVATION:
            columns[name] = values.reshape(len(values), -1) if values.ndim > 2 else values
            continue
        order = np.argsort(ranking, kind="stable")
        sample = stream(round, Purpose.RECORDED_SAMPLE).permutation(len(values))[:_SAMPLE]
        shown = np.unique(np.concatenate([order[:_EXTREMES], order[-_EXTREMES:], sample]))
        flat = [None] * len(values)
        for i in shown:
            flat[i] = values[i].reshape(-1)
        columns[name] = flat
    return columns


def _narrow(values: Array) -> Array:
    """(N, 1) as (N,): a state number or a one-dimensional action reads better as a number."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _numpy(column: Tensor | None) -> Any:
    assert column is not None
    return column.detach().cpu().numpy()
