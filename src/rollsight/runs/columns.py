"""The columns of a round's records, whichever host they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from rollsight.arrays import Bools
from rollsight.records import Records
from rollsight.scoring import Scores
from rollsight.selection import Selection
from rollsight.streams import Purpose, stream

_LARGE_OBSERVATION = 256  # numbers; larger ones are kept for a few records only
_EXTREMES, _SAMPLE = 32, 64
# Of records that are not in the update, where the rule gives no reason.
_INVALID, _BY_RULE = "invalid", "selection rule"

Columns = dict[str, Any]


def of_round(
    round: int,
    records: Records,
    obs: Mapping[str, Tensor],
    scores: Mapping[str, Scores],
    selection: Selection | None,
    more: Mapping[str, Any],
) -> Columns:
    """Every record of a round, one row each; what the records do not say is left out.

    obs: by the name of its column. more: columns of N entries that the records do not hold, such as `episode_step`;
    they come before those of the records.
    """
    given: Columns = {"round": np.full(len(records), round)}
    given |= {name: as_numpy(ids) for name, ids in records.ids.items() if name != "round"}
    given |= of_steps(records) if records.log_probs.dim() == 1 else of_sequences(records)
    given |= {f"score_{name}": as_numpy(score.values) for name, score in scores.items()}
    given |= {"kept": kept(records, selection), "valid": as_numpy(records.valid_rows)}
    given["reason"] = reasons(given["kept"], given["valid"], "" if selection is None else selection.reason)
    if obs:
        ranking = next(iter(scores.values())).values if scores else records.advantages
        given |= _observations(obs, as_numpy(ranking), round)
    given |= more
    return {name: given[name] for name in sorted(given, key=_place)}


def of_steps(records: Records) -> Columns:
    """What a round of N steps says of each."""
    columns: Columns = {}
    if isinstance(records.actions, Tensor):
        columns["action"] = _narrow(as_numpy(records.actions))
    numbers = {
        "reward": records.rewards,
        "value": records.values,
        "advantage": records.advantages,
        "return": records.returns,
        "log_prob": records.log_probs,
    }
    return {**columns, **{name: as_numpy(column) for name, column in numbers.items() if column is not None}}


def of_sequences(records: Records) -> Columns:
    """What a round of N sequences says of its tokens; lists hold the valid ones only."""
    lengths = records.valid.sum(1)

    def of_tokens(column: Tensor) -> list[Any]:
        return [row[: int(n)].numpy(force=True) for row, n in zip(column, lengths, strict=True)]

    columns: Columns = {"length": lengths.numpy(force=True)}
    advantages = of_tokens(records.advantages)
    columns["advantage"] = np.array([row[-1] if len(row) else 0.0 for row in advantages], np.float32)
    if isinstance(records.actions, Tensor):
        columns["token_ids"] = of_tokens(records.actions)
    columns["token_log_probs"] = of_tokens(records.log_probs)
    if records.values is not None:
        columns["token_values"] = of_tokens(records.values)
    return {**columns, "token_advantages": advantages}


def kept(records: Records, selection: Selection | None) -> Any:
    """(N,) booleans: which records stayed in the update."""
    return as_numpy(records.valid_rows if selection is None else selection.weights > 0)


def reasons(kept: Bools, valid: Bools, given: str | Sequence[str | None]) -> Any:
    """An Arrow column of N texts: why a record is not in the update; null where it is.

    kept, valid: (N,) booleans. given: as of `Selection`.
    """
    texts = np.empty(len(kept), object)
    texts[:] = (given or _BY_RULE) if isinstance(given, str) else [text or _BY_RULE for text in given]
    texts[~valid] = _INVALID
    texts[kept] = None
    return pa.array(texts, pa.string())


def as_numpy(column: Tensor) -> Any:
    """The same numbers in memory of the CPU."""
    return column.detach().cpu().numpy()


_ORDER: Sequence[str] = (
    *("round", "env", "step", "episode", "episode_step", "group", "prompt", "completion", "length", "action", "reward"),
    *("value", "advantage", "return", "log_prob", "entropy", "token_ids", "token_log_probs", "token_values"),
    *("token_advantages", "score_", "kept", "reason", "valid", "episode_return", "obs", "episode_start"),
)


def _place(name: str) -> int:
    start = next((one for one in ("score_", "obs") if name.startswith(one)), name)
    return _ORDER.index(start) if start in _ORDER else len(_ORDER)


def _observations(obs: Mapping[str, Tensor], ranking: np.ndarray[Any, Any], round: int) -> Columns:
    columns: Columns = {}
    for name, column in obs.items():
        values = _narrow(as_numpy(column))
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


def _narrow(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(N, 1) as (N,): a state number or a one-dimensional action reads better as a number."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
