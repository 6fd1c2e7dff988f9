"""What the checks look at: a run's summaries, and the records of rounds spread evenly over it, read by column."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from rollsight import runs
from rollsight.runs import Run

Array: TypeAlias = np.ndarray[Any, Any]

MOST_ROUNDS = 24  # whose records are read

_SUMMARIES = (
    *("invalid_rows", "explained_variance", "episodes", "return_mean", "return_std", "episode_length_mean"),
    *("episodes_terminated", "episodes_truncated", "entropy_mean", "top1pct_share", "trust_split_half"),
    *("trust_split_half_permuted", "update_norm", "approx_kl", "clip_fraction", "value_loss", "learning_rate"),
    *("reward_mean", "reward_std", "length_mean", "kl_mean", "empty", "distinct_1", "distinct_2", "optimizer_steps"),
)


class Missing(LookupError):
    """A column that a check needs is not there."""


class Evidence:
    """Rounds and records as arrays. The records are sorted by round, environment and step, as the texts by episode.

    summaries: column of the round table -> (R,) floats, NaN for null; rounds: (R,) their numbers.
    tables: the records of some of the rounds, by round.
    """

    def __init__(
        self,
        metadata: Mapping[str, Any],
        rounds: Sequence[int],
        summaries: Mapping[str, Array],
        tables: Mapping[int, pa.Table],
    ) -> None:
        self.metadata, self.rounds = metadata, np.asarray(rounds, np.int64)
        self.summaries, self.tables = summaries, tables
        self._columns: dict[str, Array] = {}

    @property
    def looked_at(self) -> tuple[int, ...]:
        """The rounds whose records are read."""
        return tuple(self.tables)

    def summary(self, name: str) -> Array:
        """(R,) a column of the round table.

        Raises:
            Missing: no round has a value there.
        """
        found = self.summaries.get(name)
        if found is None or not np.isfinite(found).any():
            raise Missing(name)
        return found

    def has(self, *names: str) -> bool:
        """Whether the records have these columns."""
        return all(name in table.column_names for name in names for table in self.tables.values())

    def column(self, name: str) -> Array:
        """(N, ...) a column of the records: numbers, or objects where it holds texts and lists of different length.

        Raises:
            Missing: a round does not have it, or not of every record.
        """
        if name not in self._columns:
            if not self.tables or not self.has(name):
                raise Missing(name)
            parts = [_as_array(table[name], name) for table in self.tables.values()]
            self._columns[name] = np.concatenate(parts)[self._order]
        return self._columns[name]

    @cached_property
    def _order(self) -> Array:
        """Rows by round, environment, step."""
        of_round, _ = self._places
        if not self.has("env", "step"):
            return np.arange(len(of_round))
        keys = [np.concatenate([table[n].to_numpy() for table in self.tables.values()]) for n in ("step", "env")]
        return np.lexsort((*keys, of_round))

    @cached_property
    def _places(self) -> tuple[Array, Array]:
        lengths = [len(table) for table in self.tables.values()]
        of_round = np.repeat(np.array(self.looked_at, np.int64), lengths)
        return of_round, np.concatenate([np.arange(n) for n in lengths]) if lengths else np.empty(0, np.int64)

    @cached_property
    def round(self) -> Array:
        """(N,) the round of each record."""
        return self._places[0][self._order]

    def places(self, rows: Array, most: int = 8) -> tuple[tuple[int, int], ...]:
        """(round, index in its table) of the first of these rows."""
        index = self._places[1][self._order]
        return tuple((int(self.round[i]), int(index[i])) for i in rows[:most])

    @cached_property
    def followed(self) -> Array:
        """(N,) whether the next row is the same environment's next step in the same round."""
        env, step = self.column("env"), self.column("step")
        follows = np.zeros(len(env), bool)
        follows[:-1] = (np.diff(self.round) == 0) & (np.diff(env) == 0) & (np.diff(step) == 1)
        return follows

    @cached_property
    def last(self) -> Array:
        """(N,) whether the episode ends with this step, as far as the next row shows it."""
        ends = np.zeros(len(self.round), bool)
        ends[:-1] = self.followed[:-1] & (np.diff(self.column("episode")) != 0)
        return ends

    @cached_property
    def observations(self) -> Array:
        """(N, D) numbers.

        Raises:
            Missing: they are dictionaries, or of a few records only.
        """
        obs = self.column("obs")
        return obs.reshape(len(obs), -1)

    @property
    def discrete(self) -> bool:
        """Whether actions are numbers of choices."""
        action = self.column("action")
        return action.ndim == 1 and action.dtype.kind in "iu"

    @cached_property
    def choices(self) -> int | None:
        """How many actions there are; None where they are continuous or the run does not say."""
        found = re.fullmatch(r"Discrete\((\d+).*\)", str(self.metadata.get("action_space", "")))
        return int(found[1]) if found else None

    @cached_property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest value of continuous actions, where the run says so and they are finite."""
        number = r"(-?[\d.e+]+)"
        found = re.match(rf"Box\({number}, {number},", str(self.metadata.get("action_space", "")))
        return (float(found[1]), float(found[2])) if found else None

    def setting(self, name: str) -> float | None:
        """A number of the host's settings."""
        value = (self.metadata.get("settings") or {}).get(name)
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def rescaled(self) -> bool:
        """Whether the host trains on other rewards than the environment's."""
        return "VecNormalize" in (self.metadata.get("env_wrappers") or [])


def read(run: Run, most: int = MOST_ROUNDS) -> Evidence:
    """The evidence of a run folder: every summary, and the records of up to `most` rounds spread evenly, with those
    rounds that had records which are not valid."""
    summaries = run.rows("rounds", ["round", *_SUMMARIES])
    rounds = np.array(summaries["round"].to_pylist(), np.int64)
    columns = {name: _numbers(summaries[name]) for name in _SUMMARIES}
    spread = np.unique(np.linspace(0, len(rounds) - 1, min(most, len(rounds))).round().astype(int))
    invalid = np.flatnonzero(columns["invalid_rows"] > 0)[:2]
    chosen = sorted({int(rounds[i]) for i in [*spread, *invalid]})
    return Evidence(run.metadata, rounds.tolist(), columns, {round: run.records(round) for round in chosen})


def of_summaries(rows: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """Summaries as `Evidence` takes them, from one mapping for each round."""
    found = [[row.get(name) for row in rows] for name in _SUMMARIES]
    return {
        name: np.array([v if isinstance(v, (int, float)) else np.nan for v in values], np.float64)
        for name, values in zip(_SUMMARIES, found, strict=True)
    }


def _numbers(column: pa.ChunkedArray) -> Array:
    return np.array([value if isinstance(value, (int, float)) else np.nan for value in column.to_pylist()], np.float64)


def _as_array(column: pa.ChunkedArray, name: str) -> Array:
    if pa.types.is_fixed_size_list(column.type):
        shape, kind = [], column.type
        while pa.types.is_fixed_size_list(kind):
            shape.append(kind.list_size)
            kind = kind.value_type
        flat = column.combine_chunks()
        flat = flat.chunk(0) if isinstance(flat, pa.ChunkedArray) else flat
        while pa.types.is_fixed_size_list(flat.type):
            flat = flat.flatten()
        return np.asarray(flat).reshape(len(column), *shape)
    if pa.types.is_list(column.type) or pa.types.is_string(column.type):
        if name == "obs" or name.startswith("obs."):
            raise Missing(name)  # of a few records only
        return np.array([*column.to_pylist(), None], object)[:-1]
    if pa.types.is_boolean(column.type):
        return np.array(column.to_pylist(), bool)
    if column.null_count:
        return runs.column_as_floats(pa.table({name: column}), name)
    return np.asarray(column.combine_chunks().to_numpy(zero_copy_only=False))
