"""Records of a round that are like one: its episode, and the nearest observations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rollsight.explorer.rounds import Round

_WIDE = 4096  # numbers of an observation that are compared


@dataclass(frozen=True, eq=False)
class Episode:
    """What a round holds of a record's episode.

    Attributes:
        records: (L,) numbers of its records in the buffer, in order of steps.
        place: which of them the record is.
        steps: (L,) steps since the episode began.
        begun_before, goes_on: whether the episode has further steps in the rounds before and after.
    """

    records: np.ndarray
    place: int
    steps: np.ndarray
    begun_before: bool
    goes_on: bool


def episode_of(round: Round, record: int) -> Episode | None:
    """The steps of a record's episode; None where the run does not number them."""
    if not round.has("env", "step", "episode"):
        return None
    env, step, episode = round.column("env"), round.column("step"), round.column("episode")
    found = np.flatnonzero((env == env[record]) & (episode == episode[record]))
    found = found[np.argsort(step[found], kind="stable")]
    steps = round.column("episode_step")[found]
    if not np.isfinite(steps).all():
        steps = step[found]
    at_end = step[found[-1]] == step[env == env[record]].max()
    goes_on = bool(at_end and not np.isfinite(round.column("episode_return")[record]))
    return Episode(found, int(np.flatnonzero(found == record)[0]), steps, bool(steps[0] > 0), goes_on)


def observations(round: Round) -> np.ndarray | None:
    """(N, D) the stored observations as numbers, NaN where they are not stored; None where there are none."""
    parts = [
        _numbers(round.table[name].combine_chunks())
        for name in round.table.column_names
        if name == "obs" or name.startswith("obs.")
    ]
    known = [part for part in parts if part is not None]
    return np.concatenate(known, 1) if known else None


def _numbers(column: pa.Array) -> np.ndarray | None:
    """(N, D) a column of numbers or of lists of one length; None for another."""
    if not pa.types.is_nested(column.type):
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            return None
        return np.array(column.cast(pa.float64()).to_numpy(zero_copy_only=False))[:, None]
    if not isinstance(column, pa.FixedSizeListArray | pa.ListArray | pa.LargeListArray):
        return None
    there = np.flatnonzero(np.asarray(column.is_valid()))
    flat = column.flatten()
    if pa.types.is_nested(flat.type) or not len(there) or len(flat) % len(there):
        return None
    wide = len(flat) // len(there)
    if not isinstance(column, pa.FixedSizeListArray):
        lengths = np.diff(np.asarray(column.offsets))[there]
        if (lengths != wide).any():
            return None
    values = np.full((len(column), wide), np.nan)
    values[there] = np.asarray(flat.to_numpy(zero_copy_only=False), dtype=np.float64).reshape(len(there), wide)
    return values[:, :_WIDE]


@dataclass(frozen=True, eq=False)
class Near:
    """The records nearest to one, the nearest first.

    Attributes:
        records: (n,) their numbers in the buffer.
        distances: (n,) root mean square difference of the observations, in standard deviations over the round.
        opposed: (n,) whether the score has the other sign.
    """

    records: np.ndarray
    distances: np.ndarray
    opposed: np.ndarray


def nearest(round: Round, record: int, count: int = 8) -> tuple[Near, Near | None] | None:
    """The records with the nearest observations: those with the same action, and those with another. Where actions are
    no numbers of choices, all are in the first, and the second is None. None where the record's own is not stored.

    States that are numbers of places, as FrozenLake's, are alike where they are equal, and not otherwise.
    """
    seen, actions = observations(round), _actions(round)
    if seen is None or not np.isfinite(seen[record]).all():
        return None
    differences = seen - seen[record]
    if "obs" in round.table.column_names and pa.types.is_integer(round.table["obs"].type):
        distances = np.where(differences[:, 0] == 0, 0.0, np.nan)
    else:
        scale = np.nanstd(seen, axis=0)
        used = scale > 0
        if not used.any():
            return None
        distances = np.sqrt(np.mean((differences[:, used] / scale[used]) ** 2, axis=1))
    distances[record] = np.nan
    distances[round.status == "invalid"] = np.nan

    def of(which: np.ndarray) -> Near:
        found = np.flatnonzero(which & np.isfinite(distances))
        found = found[np.argsort(distances[found], kind="stable")[:count]]
        opposed = round.scores[found] * round.scores[record] < 0
        return Near(found, distances[found], opposed)

    if actions is None:
        return of(np.ones(len(round), dtype=bool)), None
    same = (actions == actions[record]).all(axis=1)
    return of(same), of(~same)


def _actions(round: Round) -> np.ndarray | None:
    """(N, A) the actions, where they are numbers of choices."""
    if "action" not in round.table.column_names:
        return None
    column = round.table["action"].combine_chunks()
    kind = column.type.value_type if pa.types.is_nested(column.type) else column.type
    return _numbers(column) if pa.types.is_integer(kind) else None
