"""The SELECTs that are a run's tables in DuckDB."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollsight.runs.layout import METADATA

if TYPE_CHECKING:
    import duckdb


def select_rows(database: duckdb.DuckDBPyConnection, paths: list[Path], names: Mapping[str, str]) -> str:
    """All rows of the files, the columns under their names of today."""
    rows = _select_all(paths)
    if not names:
        return rows
    stored = [column for column, *_ in database.execute(f"describe {rows}").fetchall()]
    old_names = {new: old for old, new in names.items() if old in stored}
    columns = []
    for name in stored:
        if (old := old_names.get(name)) is not None:  # files of both schemas
            columns.append(f"coalesce({_name(name)}, {_name(old)}) as {_name(name)}")
        elif name not in names:
            columns.append(_name(name))
        elif names[name] not in stored:
            columns.append(f"{_name(name)} as {_name(names[name])}")
    return f"select {', '.join(columns)} from ({rows})"


def _select_all(paths: list[Path]) -> str:
    # DuckDB takes *, ? and [ in a file name as a pattern, and key=value folders as columns.
    names = [re.sub(r"([*?\[])", r"[\1]", str(path.absolute())) for path in paths]
    return f"select * from read_parquet([{', '.join(map(_quote, names))}], union_by_name=true, hive_partitioning=false)"


def select_metadata(run: Path, metadata: dict[str, Any]) -> str:
    types = {str: "VARCHAR", bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE"}
    columns = ", ".join(f"{_quote(name)}: '{types.get(type(value), 'JSON')}'" for name, value in metadata.items())
    name = re.sub(r"([*?\[])", r"[\1]", str((run / METADATA).absolute()))
    return f"select * from read_json({_quote(name)}, columns={{{columns}}})"


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
