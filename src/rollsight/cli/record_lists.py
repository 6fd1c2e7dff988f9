"""Lists of records that a user brings: a table with the columns round, env and step, or a line for each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rollsight.errors import RollsightError

_COLUMNS = ("round", "env", "step")


def parse_record_name(text: str) -> tuple[int, int, int]:
    """ROUND:ENV:STEP as three integers."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+)", text.strip())
    if match is None:
        raise RollsightError(f"{text.strip()!r} names no record: write ROUND:ENV:STEP, such as 10:0:12")
    return int(match[1]), int(match[2]), int(match[3])


def read_record_list(path: Path) -> dict[int, tuple[tuple[int, int], ...]]:
    """The (env, step) of the listed records by round, each once, sorted.

    `.csv`, `.parquet` and `.json` files need the columns round, env and step (also the JSON that `rollsight top`
    prints); other files a line ROUND:ENV:STEP for each record.

    Raises:
        RollsightError: there is no such file, it lists nothing, or it is not of that form.
    """
    if not path.is_file():
        raise RollsightError(f"{path} is not a file: name a list of records")
    readers = {".csv": _table, ".parquet": _table, ".json": _json}
    listed = readers.get(path.suffix.lower(), _lines)(path)
    if not listed:
        raise RollsightError(f"{path} lists no records")
    rounds = sorted({round for round, _, _ in listed})
    return {n: tuple(sorted({(env, step) for round, env, step in listed if round == n})) for n in rounds}


def _lines(path: Path) -> list[tuple[int, int, int]]:
    try:
        return [parse_record_name(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise RollsightError(f"{path} is not a text: end its name in .csv, .parquet or .json if it is one") from error


def _json(path: Path) -> list[tuple[int, int, int]]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise RollsightError(f"{path} is not valid JSON ({error})") from error
    rows = content.get("records") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RollsightError(f"{path} holds no list of records: give [{{'round': 10, 'env': 0, 'step': 12}}, ...]")
    return [_integers(path, [row.get(name) for name in _COLUMNS]) for row in rows]


def _table(path: Path) -> list[tuple[int, int, int]]:
    import duckdb

    reader = "read_parquet" if path.suffix.lower() == ".parquet" else "read_csv"
    try:
        with duckdb.connect() as database:
            rows = database.execute(f"select round, env, step from {reader}(?)", [str(path.absolute())]).fetchall()
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise RollsightError(f"{path} has no readable columns round, env and step ({reason})") from error
    return [_integers(path, list(row)) for row in rows]


def _integers(path: Path, values: list[Any]) -> tuple[int, int, int]:
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        spelled = ", ".join(f"{name} {value!r}" for name, value in zip(_COLUMNS, values, strict=True))
        raise RollsightError(f"{path} has a record with {spelled}: give three integers")
    round, env, step = values
    return round, env, step
