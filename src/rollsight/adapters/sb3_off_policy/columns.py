"""The columns of a round: every transition that the buffer held when it was scored, or a part of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rollsight.adapters.sb3_off_policy.transitions import UNKNOWN, Transitions
from rollsight.adapters.sb3_off_policy.translate import Replay
from rollsight.arrays import Ints
from rollsight.runs import columns
from rollsight.runs.columns import Columns
from rollsight.scoring import Scores
from rollsight.selection import Selection
from rollsight.streams import Purpose, stream

MOST = 50_000  # transitions of a round in the run folder
_EXTREMES = 1_000  # from each end of the scores, where there are more
_NOT_OF_REPLAY = ("advantage", "log_prob")  # what a critic's transitions have none of


def round_columns(
    round: int,
    replay: Replay,
    transitions: Transitions,
    scores: Mapping[str, Scores],
    selection: Selection | None,
    seed: int,
) -> Columns:
    """The transitions of a round, one row each, in the buffer's order.

    Of more than `MOST` a random part and the extremes of the scores; `sampled` says which were drawn at random.
    """
    leading = next(iter(scores.values()), None)
    rows, sampled = _rows(len(replay.records), leading, (seed, round, Purpose.RECORDED_SAMPLE))
    part = torch.from_numpy(rows)
    records = replay.records.take(part.to(replay.records.log_probs.device))
    some = {name: _taken(one, part) for name, one in scores.items()}
    chosen = None if selection is None else _chosen(selection, part)
    places = np.divmod(rows, transitions.step.shape[1])
    returns = transitions.episode_return(transitions.episode[places])
    more = {
        **{name: _known(getattr(transitions, name)[places]) for name in ("step", "episode", "episode_step")},
        "age": replay.age[rows],
        "terminated": replay.terminated[rows],
        "td_error": columns.as_numpy(records.advantages),
        "weight": np.where(replay.records.valid.cpu().numpy()[rows], 1.0, 0.0)
        if chosen is None
        else columns.as_numpy(chosen.weights).astype(np.float64),
        "sampled": sampled,
        "episode_return": [None if np.isnan(one) else one for one in returns.tolist()],
    }
    obs = {"obs": records.obs} if isinstance(records.obs, Tensor) else {f"obs.{k}": v for k, v in records.obs.items()}
    found = columns.of_round(round, records, obs, some, chosen, more)
    return {name: column for name, column in found.items() if name not in _NOT_OF_REPLAY}


def _rows(count: int, leading: Scores | None, key: tuple[int, ...]) -> tuple[Ints, np.ndarray]:
    """Which rows are kept, ascending, and which of them were drawn at random."""
    if count <= MOST:
        return np.arange(count), np.ones(count, np.bool_)
    drawn = stream(*key).permutation(count)[: MOST - 2 * _EXTREMES]
    kept = np.zeros(count, np.bool_)
    kept[drawn] = True
    if leading is not None:
        order = np.argsort(columns.as_numpy(leading.values), kind="stable")
        kept[order[:_EXTREMES]] = kept[order[-_EXTREMES:]] = True
    rows = np.flatnonzero(kept)
    return rows, np.isin(rows, drawn)


def _taken(scores: Scores, rows: Tensor) -> Scores:
    return replace(scores, values=scores.values.cpu()[rows], valid=scores.valid.cpu()[rows], ids={})


def _chosen(selection: Selection, rows: Tensor) -> Selection:
    given = selection.reason
    reason = given if isinstance(given, str) else [given[row] for row in rows.tolist()]
    return replace(selection, weights=selection.weights.cpu()[rows], reason=reason)


def _known(column: Ints) -> list[int | None]:
    return [None if one == UNKNOWN else one for one in column.tolist()]
