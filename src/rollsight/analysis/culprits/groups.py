"""Sums of the records' influence by what they belong to: an episode, an environment, any column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rollsight.analysis.culprits.scores import RoundInfluence
from rollsight.arrays import Bools, Floats, Ints
from rollsight.errors import RollsightError
from rollsight.runs import Run, is_language


@dataclass(frozen=True)
class Group:
    """Records that have one value in common.

    value: of the column; ROUND:ENV:STEP of a record, ROUND:EPISODE of a completion.
    records: how many were trained on.
    positive: sum of the influences above 0: what made the behaviour likelier.
    negative: sum of those below 0.
    influence: their sum.
    share: of the positive influence of all records, from 0 to 1.
    share_of_records: of the records that were trained on, from 0 to 1.
    """

    value: Any
    records: int
    positive: float
    negative: float
    influence: float
    share: float
    share_of_records: float


def place_of(run: Run) -> tuple[str, ...]:
    """The columns that name a record."""
    return ("round", "episode") if is_language(run.metadata) else ("round", "env", "step")


def check_columns(run: Run, by: Sequence[str]) -> None:
    """`RollsightError` where records cannot be gathered by one of the columns."""
    schema = run.records(run.rounds[0]).schema
    plain = [name for name in schema.names if not pa.types.is_nested(schema.field(name).type)]
    for name in by:
        if name != "record" and name not in plain:
            why = "holds lists" if name in schema.names else "is not a column of the records"
            raise RollsightError(f"{name!r} {why}: gather by record or one of {', '.join(plain)}")


def columns(run: Run, rounds: Sequence[RoundInfluence], names: Sequence[str]) -> pa.Table:
    """These columns of the rounds' records, in the order of the influences."""
    table = run.rows("records", list(dict.fromkeys(names)), {one.round for one in rounds})
    if len(table) != sum(len(one.values) for one in rounds):
        raise RollsightError(
            f"the tables of {run.path} have {len(table)} records in the scored rounds and the frozen rounds "
            f"{sum(len(one.values) for one in rounds)}: check the run with rollsight check"
        )
    return table


def gather(run: Run, rounds: Sequence[RoundInfluence], by: str, top: int | None = None) -> list[Group]:
    """The groups of the records by a column (or "record"), the highest sum of influences first.

    top: only so many; None for all.

    Raises:
        RollsightError: there is no such column, or its values are lists.
    """
    check_columns(run, [by])
    values, trained = flat(rounds)
    if by == "record":
        place = columns(run, rounds, place_of(run))
        code = np.arange(len(values))
        order = np.flatnonzero(trained)
        order = order[np.argsort(-values[order], kind="stable")[:top]]
        names = {
            int(index): ":".join(str(place[name][int(index)].as_py()) for name in place_of(run)) for index in order
        }  # only of those shown: there may be a million
        sums, positive, counts = values, np.maximum(values, 0), np.ones(len(values), np.int64)
    else:
        code, known = coded(columns(run, rounds, [by])[by])
        size = len(known)
        sums = np.asarray(np.bincount(code[trained], values[trained], size), np.float64)
        positive = np.asarray(np.bincount(code[trained], np.maximum(values[trained], 0), size), np.float64)
        counts = np.bincount(code[trained], minlength=size)
        order = np.flatnonzero(counts)
        order = order[np.argsort(-sums[order], kind="stable")[:top]]
        names = {int(index): known[int(index)] for index in order}
    total, all_records = float(np.maximum(values, 0).sum()), max(int(trained.sum()), 1)
    return [
        Group(
            names[index],
            int(counts[index]),
            float(positive[index]),
            float(sums[index] - positive[index]),
            float(sums[index]),
            float(positive[index]) / total if total > 0 else 0.0,
            int(counts[index]) / all_records,
        )
        for index in order.tolist()
    ]


def flat(rounds: Sequence[RoundInfluence]) -> tuple[Floats, Bools]:
    """The influences of all rounds' records, one after the other, and which were trained on."""
    return np.concatenate([one.values for one in rounds]), np.concatenate([one.weights > 0 for one in rounds])


def coded(column: pa.ChunkedArray) -> tuple[Ints, list[Any]]:
    """The column as numbers from 0, and the value that each stands for; null is a value too."""
    encoded = pc.dictionary_encode(column.combine_chunks(), null_encoding="encode")
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int64), encoded.dictionary.to_pylist()
