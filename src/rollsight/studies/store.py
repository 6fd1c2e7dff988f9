"""What the runs of a study measured: `curves.parquet` holds all of them.

A run that ends while the study goes on is a small file of its own in `new/` first, so that an interruption loses
nothing; `gather` puts these into the one file. A run is named by its key: a value for each of the study's key columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from numpy.typing import NDArray

from rollsight.errors import RollsightError
from rollsight.runs import whole_file

Key: TypeAlias = tuple[str | int, ...]
Columns: TypeAlias = Mapping[str, NDArray[Any]]
"""Of one run, (R,) each: whole numbers for `round`, text as objects, else floats, nan where nothing is known."""
Rows: TypeAlias = Sequence[Mapping[str, Any]]
"""What a run measured, a row for each evaluation; None, or no entry, where nothing is known."""

_CURVES, _NEW, _LOCK = "curves.parquet", "new", ".lock"
_WHOLE_NUMBERS = ("seed", "round")


def stored(folder: Path, keys: Sequence[str]) -> dict[Key, Columns]:
    """Every run in a study's folder, in the order of their keys; empty where there is none.

    Raises:
        RollsightError: a file is damaged, or of another kind of study.
    """
    new = [_read(path, keys) for path in _new_files(folder)]  # first: they may be gathered meanwhile
    runs = dict[Key, Columns]()
    for found in (_read(folder / _CURVES, keys), *new):
        runs |= found
    return dict(sorted(runs.items()))


def add(folder: Path, keys: Sequence[str], key: Key, rows: Rows) -> None:
    """Keep what one run measured; it appears whole or not at all, in place of an older run of the same key.

    Floats are kept to five significant digits.
    """
    path = folder / _NEW / ("+".join(quote(str(part), safe="@=,") for part in key) + ".parquet")
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: np.array([_rounded(row.get(name)) for row in rows]) for name in names}
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / _LOCK):  # another process may be gathering
        path.parent.mkdir(exist_ok=True)
        _write(path, keys, {key: columns})


def gather(folder: Path, keys: Sequence[str]) -> None:
    """Put the small files into the one."""
    if not (folder / _NEW).is_dir():
        return
    with FileLock(folder / _LOCK):
        if new := _new_files(folder):
            _write(folder / _CURVES, keys, stored(folder, keys))
        for path in new:
            path.unlink()
        if (folder / _NEW).is_dir() and not any((folder / _NEW).iterdir()):
            (folder / _NEW).rmdir()


def _new_files(folder: Path) -> list[Path]:
    return sorted((folder / _NEW).glob("*.parquet"))


def _rounded(value: Any) -> Any:
    if value is None:
        return np.nan
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _write(path: Path, keys: Sequence[str], runs: Mapping[Key, Columns]) -> None:
    lengths = [len(next(iter(columns.values()))) for columns in runs.values()]
    table = {
        name: pa.array(np.repeat(np.array(values, dtype=object), lengths).tolist())
        for name, values in zip(keys, zip(*runs, strict=True), strict=True)
    }
    for name in dict.fromkeys(name for columns in runs.values() for name in columns):
        parts = [columns.get(name, np.full(n, np.nan)) for columns, n in zip(runs.values(), lengths, strict=True)]
        whole = np.concatenate(parts)
        table[name] = pa.array(whole.astype(np.int64) if name in _WHOLE_NUMBERS else whole, from_pandas=True)
    texts = [name for name, column in table.items() if pa.types.is_string(column.type)]
    with whole_file(path) as temporary:
        # Numbers seldom repeat, so that a dictionary of them makes the file larger.
        pq.write_table(pa.table(table), temporary, compression="zstd", compression_level=19, use_dictionary=texts)


def _read(path: Path, keys: Sequence[str]) -> dict[Key, Columns]:
    """The runs in a file, whose rows stand together; none where there is no file."""
    try:
        table = pq.read_table(path)
        named = [np.asarray(table[name].to_pylist(), dtype=object) for name in keys]
    except FileNotFoundError:
        return {}
    except (pa.ArrowException, KeyError) as error:
        raise RollsightError(f"{path} does not hold the curves of this study ({error}): give its folder") from error
    columns = {name: table[name].to_numpy() for name in table.column_names if name not in keys}
    changes = np.any([part[1:] != part[:-1] for part in named], axis=0)
    starts = [0, *(np.flatnonzero(changes) + 1).tolist(), len(table)]
    return {
        tuple(part[low] for part in named): {name: column[low:high] for name, column in columns.items()}
        for low, high in pairwise(starts)
    }
