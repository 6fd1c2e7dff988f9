"""Which records of a round are shown: the filters and the order of a table, as one SQL query.

The query that chooses the rows here, over the round's table in memory, is letter by letter the one that a page offers
to copy, so both give the same rows. No text from outside is SQL: columns are those of the table, comparisons those
below, values are quoted.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from rollsight.errors import RollsightError

if TYPE_CHECKING:
    import duckdb

Kind = Literal["number", "text", "boolean", "other"]
RECORD, STATUS, PHASE, SEARCH = "record", "status", "phase", "search"  # columns that no file holds
THIRDS = ("first", "middle", "last")
_OWN, _STORED = (RECORD, STATUS, PHASE, SEARCH), "stored_"

_COMPARED = {
    "equals": "=",
    "notEqual": "<>",
    "lessThan": "<",
    "lessThanOrEqual": "<=",
    "greaterThan": ">",
    "greaterThanOrEqual": ">=",
}
_WORDED = {
    "contains": "contains(lower({column}), lower({value}))",
    "notContains": "not contains(lower({column}), lower({value}))",
    "equals": "{column} = {value}",
    "notEqual": "{column} <> {value}",
    "startsWith": "starts_with(lower({column}), lower({value}))",
    "endsWith": "suffix(lower({column}), lower({value}))",
}
_STATUS = (
    "case when not coalesce({valid}, true) then 'invalid' when coalesce({kept}, true) then 'kept' else 'dropped' end"
)
_PHASE = (
    "['first', 'middle', 'last'][1 + 3 * (row_number() over (partition by {episode} order by {step}) - 1)"
    " // count(*) over (partition by {episode})]"
)


@dataclass(frozen=True)
class Chosen:
    """What a table is asked for.

    Attributes:
        filters: column -> filter, as AG Grid writes it: `{"filterType": "number", "type": "lessThan", "filter": 0}`, or
            two of these as `conditions` with an `operator`. The column "search" stands for all texts of a row.
        sort: columns with "asc" or "desc", the most important first; buffer order where that is equal.
    """

    filters: Mapping[str, Any] = field(default_factory=dict)
    sort: Sequence[tuple[str, str]] = ()


def chosen_from(filters: str | None, sort: str | None) -> Chosen:
    """From the address: `filters` as JSON, `sort` as `score_return:asc,step:desc`.

    Raises:
        RollsightError: the filters are not a JSON object.
    """
    try:
        given = json.loads(filters or "{}")
    except ValueError as error:
        raise RollsightError(
            f"filter={filters} is not JSON: take the address from the page's own address bar"
        ) from error
    if not isinstance(given, dict):
        raise RollsightError(f"filter={filters} is not a JSON object: take the address from the page's own address bar")
    order = [part.rpartition(":") for part in (sort or "").split(",") if ":" in part]
    return Chosen(given, tuple((column, direction) for column, _, direction in order))


def unclashed(table: pa.Table) -> pa.Table:
    """The table with stored columns that are called like one of ours under another name, as `stored_status`."""
    return table.rename_columns([f"{_STORED}{name}" if name in _OWN else name for name in table.column_names])


def kind_of(column: pa.DataType) -> Kind:
    """What filters a column of this type takes; "other" has none."""
    if pa.types.is_boolean(column):
        return "boolean"
    if pa.types.is_integer(column) or pa.types.is_floating(column):
        return "number"
    return "text" if pa.types.is_string(column) or pa.types.is_large_string(column) else "other"


def kinds(table: pa.Table) -> dict[str, Kind]:
    """Every column of an `unclashed` table that can be asked for, with its kind; those that no file holds too."""
    named = dict(zip(table.column_names, table.schema.types, strict=True))
    found: dict[str, Kind] = {RECORD: "number", STATUS: "text"}
    if {"episode", "step"} <= named.keys():
        found[PHASE] = "text"
    return found | {name: kind_of(of) for name, of in named.items()}


def sql(table: pa.Table, round: int, chosen: Chosen) -> str:
    """The query over a run's `records` that gives these rows of a round in this order: their number in the buffer as
    `record`, then every stored column.

    table: `unclashed` records of the round.

    Raises:
        RollsightError: a filter or an order names a column that is not there, or is not one that its type has.
    """
    known = kinds(table)
    conditions = [_condition(table, known, name, given) for name, given in chosen.filters.items()]
    order = [_order(known, name, direction) for name, direction in chosen.sort]
    used = {*chosen.filters, *(name for name, _ in chosen.sort)}
    added = {name: how for name, how in _derived(table).items() if name in used}
    columns = "".join(f", {how} as {_name(name)}" for name, how in added.items())
    hidden = f" exclude ({', '.join(map(_name, added))})" if added else ""
    other = [name for name in table.column_names if _in_file(name) != name]
    stored = f"* exclude ({', '.join(_name(_in_file(name)) for name in other)})" if other else "*"
    stored += "".join(f", {_name(_in_file(name))} as {_name(name)}" for name in other)
    rows = f"select row_number() over () - 1 as {RECORD}, {stored}{columns} from records where round = {round}"
    where = f" where {' and '.join(conditions)}" if conditions else ""
    return f"select *{hidden} from ({rows}){where} order by {', '.join([*order, RECORD])}"


def command(run: Path, query: str) -> str:
    """The command that prints these rows."""
    import shlex

    return f"rollsight sql {shlex.quote(str(run))} {shlex.quote(query)} --json"


def python(run: Path, query: str) -> str:
    """The Python lines that give these rows as an Arrow table."""
    return f"from rollsight import runs\n\nrows = runs.open({str(run)!r}).sql({query!r}).to_arrow_table()"


def rows(table: pa.Table, query: str) -> np.ndarray:
    """(n,) numbers of the records that a query of `sql` gives, in its order.

    table: `unclashed` records of the round.
    """
    cursor = _database().cursor()
    try:
        # Lists and observations are not looked at, and are most of what a table holds.
        plain = [name for name, of in zip(table.column_names, table.schema.types, strict=True) if _looked_at(name, of)]
        files = table.select(plain).rename_columns([_in_file(name) for name in plain])
        cursor.register("records", files)
        return np.asarray(cursor.sql(f"select {RECORD} from ({query})").fetchnumpy()[RECORD], dtype=np.int64)
    finally:
        cursor.close()


def _looked_at(name: str, of: pa.DataType) -> bool:
    return kind_of(of) != "other" or _in_file(name) != name  # a query names what is called otherwise


def _in_file(name: str) -> str:
    """What a column of an `unclashed` table is called in its file."""
    given = name.removeprefix(_STORED)
    return given if given in _OWN else name


def words(filters: Mapping[str, Any]) -> list[str]:
    """The filters as people say them."""
    return [_words(name, given) for name, given in filters.items()]


def equal(kind: Kind, value: object) -> dict[str, Any]:
    """The filter for one value of a column."""
    return {"filterType": kind, "type": "equals", "filter": value}


def between(low: float, high: float, last: bool) -> dict[str, Any]:
    """The filter for numbers from `low` to below `high`; last: `high` itself too."""
    upper = "lessThanOrEqual" if last else "lessThan"
    conditions = [
        {"filterType": "number", "type": "greaterThanOrEqual", "filter": low},
        {"filterType": "number", "type": upper, "filter": high},
    ]
    return {"filterType": "number", "operator": "AND", "conditions": conditions}


def _derived(table: pa.Table) -> dict[str, str]:
    def stored(name: str, otherwise: str) -> str:
        return _name(name) if name in table.column_names else otherwise

    episode = ", ".join(_name(name) for name in ("env", "episode") if name in table.column_names)
    return {
        STATUS: _STATUS.format(valid=stored("valid", "true"), kept=stored("kept", "true")),
        PHASE: _PHASE.format(episode=episode, step=_name("step")),
    }


def _condition(table: pa.Table, known: Mapping[str, Kind], name: str, given: Any) -> str:
    if name == SEARCH:
        texts = [column for column, kind in known.items() if kind == "text" and column in table.column_names]
        found = [_one("text", _name(column), given, name) for column in texts]
        return f"({' or '.join(found)})" if found else "false"
    if name not in known:
        raise RollsightError(f"there is no column {name!r} to filter by: the columns are {', '.join(known)}")
    column = _name(name)
    if isinstance(given, Mapping) and "conditions" in given:
        operator = {"AND": " and ", "OR": " or "}.get(str(given.get("operator")))
        parts = given["conditions"]
        if operator is None or not isinstance(parts, list) or not parts:
            raise _not_valid(name, given)
        return f"({operator.join(_one(known[name], column, part, name) for part in parts)})"
    return _one(known[name], column, given, name)


def _one(kind: Kind, column: str, given: Any, name: str) -> str:
    """One comparison."""
    if not isinstance(given, Mapping):
        raise _not_valid(name, given)
    how, value = given.get("type"), given.get("filter")
    if how in ("blank", "notBlank"):
        return f"{column} is {'not ' if how == 'notBlank' else ''}null"
    if kind == "boolean" and how in ("yes", "no"):
        return column if how == "yes" else f"not {column}"
    if kind == "number" and how == "inRange":
        return f"{column}::double between {_number(name, value)} and {_number(name, given.get('filterTo'))}"
    if kind == "number" and how in _COMPARED:
        return f"{column}::double {_COMPARED[how]} {_number(name, value)}"
    if kind == "text" and how in _WORDED and isinstance(value, str):
        return _WORDED[how].format(column=column, value=_quote(value))
    raise _not_valid(name, given)


def _number(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RollsightError(f"{value!r} is not a number to compare {name} with: give one such as -0.5")
    return repr(value)


def _order(known: Mapping[str, Kind], name: str, direction: str) -> str:
    if known.get(name, "other") == "other":
        raise RollsightError(f"{name!r} is not a column to sort by: choose one of numbers or texts")
    return f"{_name(name)} {'desc' if direction == 'desc' else 'asc'} nulls last"


def _not_valid(name: str, given: Any) -> RollsightError:
    return RollsightError(
        f"{given!r} is not a filter of the column {name!r}: clear the filters and set it in the table"
    )


def _words(name: str, given: Any) -> str:
    if "conditions" in given:
        return f" {str(given['operator']).lower()} ".join(_words(name, part) for part in given["conditions"])
    how, value = str(given.get("type")), given.get("filter")
    if how == "inRange":
        return f"{name} from {value} to {given.get('filterTo')}"
    sign = {**_COMPARED, "notEqual": "≠", "lessThanOrEqual": "≤", "greaterThanOrEqual": "≥"}.get(how)
    if sign is None:
        spoken = {"notContains": "does not contain", "startsWith": "starts with", "endsWith": "ends with"}
        spoken |= {"blank": "is empty", "notBlank": "is not empty"}
        sign = spoken.get(how, how)
    shown = f"{value:.4g}" if isinstance(value, float) else value
    return f"{name} {sign}" if value is None else f"{name} {sign} {shown}"


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


_opening = threading.Lock()


def _database() -> duckdb.DuckDBPyConnection:
    with _opening:
        return _opened()


@cache
def _opened() -> duckdb.DuckDBPyConnection:
    """One database in memory that can read no file, for all threads; each takes a cursor of its own."""
    import duckdb

    return duckdb.connect(config={"threads": 1, "enable_external_access": False, "lock_configuration": True})
