"""A round's records as arrays: what the figures of the pages Round and Record are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from rollsight.errors import RollsightError
from rollsight.explorer.filtering import THIRDS, unclashed
from rollsight.explorer.reading import Reading
from rollsight.explorer.tables import column

Status = Literal["kept", "dropped", "invalid"]
By = Literal["action", "episode", "env", "phase", "group"]


@dataclass(frozen=True, eq=False)
class Round:
    """The N records of a round, with the scores of one target.

    Attributes:
        number: of the round.
        table: all stored columns.
        targets: whose scores are stored, in order.
        target: whose scores are looked at; None where none are stored.
        scores: (N,) NaN where a record is invalid or has none.
        status: (N,) "kept", "dropped" or "invalid".
    """

    number: int
    table: pa.Table
    targets: tuple[str, ...]
    target: str | None
    scores: np.ndarray
    status: np.ndarray

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> np.ndarray:
        """A column of numbers (N,), NaN where there is none."""
        return column(self.table, name)

    def has(self, *names: str) -> bool:
        """Whether all these columns are stored."""
        return set(names) <= set(self.table.column_names)

    @property
    def score_column(self) -> str:
        """Name of the column of the scores."""
        return f"score_{self.target}"


def round_of(reading: Reading, run: str, number: int, target: str | None = None) -> Round:
    """One round; target: the first by default.

    Raises:
        RollsightError: there is no such round or target, or the file is damaged.
    """
    table = unclashed(reading.records(run, number))
    targets = tuple(reading.targets(run, number))
    if target is not None and target not in targets:
        stored = f"its targets are {', '.join(targets)}" if targets else "it was not scored"
        raise RollsightError(f"round {number} has no scores of the target {target!r}: {stored}")
    target = target or next(iter(targets), None)
    valid, kept = _flag(table, "valid"), _flag(table, "kept")
    scores = column(table, f"score_{target}") if target else np.full(len(table), np.nan)
    status = np.where(~valid, "invalid", np.where(kept, "kept", "dropped"))
    return Round(number, table, targets, target, np.where(valid & np.isfinite(scores), scores, np.nan), status)


def _flag(table: pa.Table, name: str) -> np.ndarray:
    values = column(table, name)
    return np.asarray(np.isnan(values) | (values > 0))


def runs_of(episode: np.ndarray, env: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of each step (N,) among those of its episode that are in the round, from 0, and how many these are."""
    order = np.lexsort((step, episode, env))
    changed = np.ones(len(order), dtype=bool)
    changed[1:] = (episode[order][1:] != episode[order][:-1]) | (env[order][1:] != env[order][:-1])
    starts = np.flatnonzero(changed)
    counts = np.diff(np.append(starts, len(order)))
    place, length = np.empty(len(order), dtype=np.int64), np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) - np.repeat(starts, counts)
    length[order] = np.repeat(counts, counts)
    return place, length


def thirds(round: Round) -> np.ndarray:
    """In which third of its episode's steps of this round each record (N,) is."""
    env = round.column("env") if round.has("env") else np.zeros(len(round))
    place, length = runs_of(round.column("episode"), env, round.column("step"))
    named: np.ndarray = np.asarray(THIRDS)[3 * place // np.maximum(length, 1)]
    return named


def choices(round: Round) -> list[By]:
    """By what the harmful mass of a round can be split."""
    offered: list[By] = []
    if round.has("action") and pa.types.is_integer(round.table["action"].type):
        offered.append("action")
    if round.has("group"):
        offered.append("group")
    if round.has("env", "step", "episode"):
        offered.append("phase")
        if len(np.unique(round.column("env"))) > 1:
            offered.append("env")
    if round.has("episode"):  # of language models the completion
        offered.append("episode")
    return offered


@dataclass(frozen=True, eq=False)
class Masses:
    """The round's absolute scores, split.

    Attributes:
        by: the column.
        values: (K,) its values.
        hurt, helped: (K,) shares of the sum of all absolute scores in negative and in positive ones.
        records: (K,) how many.
        left_out: how many further values there are, whose harmful mass is smaller.
    """

    by: By
    values: np.ndarray
    hurt: np.ndarray
    helped: np.ndarray
    records: np.ndarray
    left_out: int = 0


_BARS = 24  # values that a figure shows


def masses(round: Round, by: By) -> Masses:
    """Harmful and helpful mass by the values of a column: in their own order where all can be shown, else the most
    harmful ones."""
    keys = thirds(round) if by == "phase" else round.column(by).astype(np.int64)
    scored = np.isfinite(round.scores)
    total = np.abs(round.scores[scored]).sum() or 1.0
    values, inverse = np.unique(keys[scored], return_inverse=True)

    def summed(parts: np.ndarray) -> np.ndarray:
        return np.bincount(inverse, parts, minlength=len(values))

    scores = round.scores[scored]
    hurt, helped = summed(np.maximum(-scores, 0)) / total, summed(np.maximum(scores, 0)) / total
    order = np.argsort([THIRDS.index(value) for value in values]) if by == "phase" else np.arange(len(values))
    if len(values) > _BARS:
        order = np.argsort(-hurt, kind="stable")[:_BARS]
    counts = np.bincount(inverse, minlength=len(values))
    return Masses(by, values[order], hurt[order], helped[order], counts[order], len(values) - len(order))


def cut_of(round: Round, summary: Mapping[str, Any]) -> float | None:
    """The highest score that was dropped, where everything below it was dropped too and nothing above it."""
    if round.target is None or summary.get("target") not in (None, round.target):
        return None
    scored = np.isfinite(round.scores)
    dropped = round.scores[scored & (round.status == "dropped")]
    kept = round.scores[scored & (round.status == "kept")]
    if not len(dropped) or (len(kept) and kept.min() < dropped.max()):
        return None
    return float(dropped.max())


def episode_ends(round: Round, limit: int | None) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """(N,) whether an episode ends with the record, and whether it does at its time limit; None without episodes.

    limit: steps after which the environment cuts an episode off, if it does.
    """
    if not round.has("env", "step", "episode"):
        return None, None
    env, step, episode = round.column("env"), round.column("step"), round.column("episode")
    order = np.lexsort((step, env))
    last = np.ones(len(order), dtype=bool)  # of its environment
    last[:-1] = env[order][1:] != env[order][:-1]
    ends_sorted = np.ones(len(order), dtype=bool)
    ends_sorted[:-1] = episode[order][1:] != episode[order][:-1]
    # The rollout may break an episode off: only one that has a return is over.
    ends_sorted &= ~last | np.isfinite(round.column("episode_return")[order])
    ends = np.empty(len(order), dtype=bool)
    ends[order] = ends_sorted
    timed_out = ends & (round.column("episode_step") + 1 >= limit) if limit else np.zeros_like(ends)
    return ends, timed_out
