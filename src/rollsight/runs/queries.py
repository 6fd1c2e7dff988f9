"""What a viewer asks of run folders: a page of a round's records, one line for each of many runs, what has changed.

Filters and sort keys are data, never SQL. Files are verified as everywhere; tables that were read last are kept.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import pyarrow as pa
import pyarrow.compute as pc

from rollsight.errors import RollsightError
from rollsight.runs.layout import DIGESTS, METADATA, round_numbers, round_path
from rollsight.runs.reader import Run, open_run

Operator: TypeAlias = Literal["=", "!=", "<", "<=", ">", ">=", "in", "contains", "null", "not null"]
Condition: TypeAlias = tuple[str, Operator, Any]
"""Column, operator and value. "contains" looks for a text in a column's text, whatever its case; "null" and "not null"
take no value (None)."""

ROW = "row"  # the place of a record in its round, which a page adds to the columns
_COMPARED = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_KEPT_BYTES = 128 * 2**20  # of tables that were read last
_tables: OrderedDict[tuple[Path, int, int], pa.Table] = OrderedDict()


@dataclass(frozen=True, eq=False)
class Page:
    """A part of a round's records.

    rows: the page, with the column `row`.
    matching: how many records the filter leaves.
    records: how many there are.
    """

    rows: pa.Table
    matching: int
    records: int


def page(
    run: Run,
    round: int,
    where: Iterable[Condition] = (),
    order: Sequence[tuple[str, Literal["ascending", "descending"]]] = (),
    offset: int = 0,
    limit: int = 100,
    columns: Sequence[str] | None = None,
    search: str = "",
) -> Page:
    """The records `offset` to `offset + limit` of a complete round that fulfil all conditions, in this order.

    order: sort keys, the first counts most; nulls and NaN come last, and what is equal stays in buffer order.
    columns: None stands for all. search: a text that one of the columns of texts must contain, whatever its case.

    Raises:
        RollsightError: there is no such round, column or operator, or a value does not fit its column.
    """
    table = records(run, round)
    kept = table.filter(_mask(table, where, search))
    sorted_rows = _sorted(kept, order)
    offset, limit = max(int(offset), 0), max(int(limit), 0)
    for name in columns or ():
        _column(kept, name)
    chosen = kept if columns is None else kept.select([ROW, *(name for name in columns if name != ROW)])
    rows = chosen.slice(offset, limit) if sorted_rows is None else chosen.take(sorted_rows.slice(offset, limit))
    return Page(rows, len(kept), len(table))


def _sorted(table: pa.Table, order: Sequence[tuple[str, str]]) -> pa.Array | None:
    """The rows in their order; None for the order in which they are."""
    if not order:
        return None
    names = [f"{place}" for place, _ in enumerate(order)]
    keys = {}
    for place, (name, direction) in zip(names, order, strict=True):
        keys[place] = _column(table, name)
        if direction not in ("ascending", "descending"):
            raise RollsightError(f"{direction!r} is not an order: give 'ascending' or 'descending'")
    try:
        by = [(place, direction) for place, (_, direction) in zip(names, order, strict=True)]
        return pc.sort_indices(pa.table(keys), by)  # nulls and NaN at the end
    except pa.ArrowException as error:
        raise RollsightError(f"the records cannot be sorted by {', '.join(name for name, _ in order)}") from error


def change_token(path: Path) -> str:
    """Text that is another one when something was added to a run, or it was continued or replaced. Three looks at the
    file system."""
    parts = []
    for name in (METADATA, DIGESTS, "rounds"):
        try:
            found = os.stat(path / name)
            parts.append(f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}")
        except FileNotFoundError:
            parts.append("")
    return ".".join(parts)


@dataclass(frozen=True, eq=False)
class RunLine:
    """One run among many.

    path: its folder.
    token: of `change_token`.
    metadata: of its `run.json`.
    rounds: number of complete ones.
    last: the summary of the last one.
    problem: in words, where it cannot be read; then the others are empty.
    """

    path: Path
    token: str
    metadata: dict[str, Any]
    rounds: int
    last: dict[str, Any]
    problem: str = ""


def summary_table(paths: Iterable[str | Path], known: Iterable[RunLine] = ()) -> list[RunLine]:
    """A line for each run, from its `run.json` and its last round's summary; records are not read.

    known: lines of an earlier call, which are used again where nothing has changed.
    """
    by_path = {line.path: line for line in known}
    return [_line(Path(path), by_path.get(Path(path))) for path in paths]


def _line(path: Path, known: RunLine | None) -> RunLine:
    token = change_token(path)
    if known is not None and known.token == token:
        return known
    try:
        run = open_run(path)
        rounds = round_numbers(path, "rounds")
        return RunLine(path, token, run.metadata, len(rounds), run.summary(rounds[-1]) if rounds else {})
    except RollsightError as error:
        return RunLine(path, token, {}, 0, {}, str(error))


def records(run: Run, round: int) -> pa.Table:
    """A round's records with their places, kept for the next page of them."""
    path = round_path(run.path, "records", round)
    try:
        key = path, path.stat().st_mtime_ns, path.stat().st_size
    except OSError:
        key = path, 0, 0  # the run says what is wrong with it
    if key in _tables:
        _tables.move_to_end(key)
        return _tables[key]
    table = run.records(round)
    if ROW in table.column_names:
        table = table.drop_columns([ROW])
    table = table.add_column(0, ROW, pa.array(range(len(table)), pa.int64()))
    _tables[key] = table
    while len(_tables) > 1 and sum(one.nbytes for one in _tables.values()) > _KEPT_BYTES:
        _tables.popitem(last=False)
    return table


def episode_rows(run: Run, round: int, row: int) -> list[tuple[int, int]]:
    """Round and row of every stored step of a record's episode, in order, over rounds; only the record itself where
    the run does not number its episodes. Rows that only reset are left out.

    Raises:
        RollsightError: there is no such record, or a file is damaged.
    """
    table = records(run, round)
    if not 0 <= row < len(table):
        raise RollsightError(f"round {round} of {run.path} has {len(table)} records and none of number {row}")
    if not {"episode", "episode_step"} <= set(table.column_names):
        return [(round, row)]
    number = table["episode"][row].as_py()
    complete, found = run.rounds, dict[int, list[tuple[int, int]]]()
    place = complete.index(round)
    for rounds in (complete[place::-1], complete[place + 1 :]):
        for one in rounds:
            if not (steps := _steps_of(records(run, one), number)):
                break
            found[one] = [(step, at) for step, at in steps if step >= 0]
            if one <= round and steps[0][0] <= 0:
                break  # it began in this round
    return [(one, at) for one in sorted(found) for _, at in sorted(found[one])]


def _steps_of(table: pa.Table, episode: int) -> list[tuple[int, int]]:
    """The episode's steps in a round, each with its row, in order."""
    part = table.filter(pc.equal(table["episode"], episode))
    return sorted(zip(part["episode_step"].to_pylist(), part[ROW].to_pylist(), strict=True))


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise RollsightError(f"the records have no column {name!r}: choose from {', '.join(table.column_names)}")
    return table[name]


def _mask(table: pa.Table, where: Iterable[Condition], search: str) -> pa.ChunkedArray:
    """(N,) booleans: the records that fulfil all conditions."""
    mask = pa.chunked_array([pa.array([True] * len(table))])
    for name, operator, value in where:
        column = _column(table, name)
        if operator not in get_args(Operator):
            raise RollsightError(f"{operator!r} is not an operator: choose from {', '.join(get_args(Operator))}")
        try:
            found = _fulfilled(column, operator, value)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise RollsightError(
                f"the column {name!r} ({column.type}) cannot be compared by {operator!r} with {value!r}"
            ) from error
        mask = pc.and_(mask, pc.fill_null(found, False))
    if search:
        texts = [column for column in table.columns if pa.types.is_string(column.type)]
        hits = [pc.fill_null(_contains(column, search), False) for column in texts]
        anywhere = pc.or_(hits[0], hits[0]) if hits else pa.chunked_array([pa.array([False] * len(table))])
        for hit in hits[1:]:
            anywhere = pc.or_(anywhere, hit)
        mask = pc.and_(mask, anywhere)
    return mask


def _fulfilled(column: pa.ChunkedArray, operator: Operator, value: Any) -> pa.ChunkedArray:
    if operator in _COMPARED:
        return _COMPARED[operator](column, _scalar(value, column.type))
    match operator:
        case "in":
            return pc.is_in(
                column, value_set=pa.array([_scalar(one, column.type).as_py() for one in value], column.type)
            )
        case "contains":
            return _contains(column, str(value))
        case "null":
            return pc.is_null(column)
    return pc.is_valid(column)


def _scalar(value: Any, type: pa.DataType) -> pa.Scalar:
    """The value as the column holds it; a fraction stays one where the column holds integers."""
    if pa.types.is_integer(type) and isinstance(value, float):
        return pa.scalar(value)
    return pa.scalar(value, type)


def _contains(column: pa.ChunkedArray, text: str) -> pa.ChunkedArray:
    texts = column if pa.types.is_string(column.type) else pc.cast(column, pa.string())
    return pc.match_substring(texts, text, ignore_case=True)
