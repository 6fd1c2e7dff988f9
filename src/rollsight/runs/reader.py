"""Read a run folder, also while it is being written: metadata, rounds, records, snapshots, SQL."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from rollsight.errors import RollsightError
from rollsight.runs.frames import Library, as_frame
from rollsight.runs.layout import (
    DIGESTS,
    METADATA,
    TABLES,
    Kind,
    find_runs,
    is_run,
    read_bytes,
    round_numbers,
    round_path,
    spell,
)
from rollsight.runs.metadata import read_metadata
from rollsight.runs.ranking import column_as_floats, rank_records, scored_round
from rollsight.runs.schema import renamed
from rollsight.runs.verified import VerifiedFiles, damaged
from rollsight.runs.views import select_metadata, select_rows

if TYPE_CHECKING:
    import duckdb

SCORE_PREFIX = "score_"  # a target's scores are stored in the column score_<target>


def open_run(path: str | Path) -> Run:
    """Open a run folder for reading.

    Raises:
        RollsightError: the folder is not a run; the message names runs in it or next to it.
    """
    path = Path(path)
    if not is_run(path):
        problem = f"it has no {METADATA}" if path.exists() else "there is no such folder"
        near = find_runs(path) or find_runs(path.parent)
        names = ", ".join(str(run) for run in near[:5]) + (", ..." if len(near) > 5 else "")
        raise RollsightError(f"{path} is not a run ({problem}): name a run folder{f' such as {names}' if near else ''}")
    return Run(path)


class Run:
    """A run folder, read only. Rounds completed after it was opened show as they come. For use in one thread.

    Every file is compared with its digest where it is read (`SHA256SUMS`; not in a run of a version that wrote none).
    Rows that are gone, and files that cannot be verified, are a Python warning, once.
    Columns that an earlier version called otherwise have their names of today (`schema.RENAMED`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.resolve().name
        self.metadata = read_metadata(path)
        self._files = VerifiedFiles(path, (self.metadata.get("digests") or {}).get("from_round"))
        self._said: set[Kind] = set()
        self._database: duckdb.DuckDBPyConnection | None = None

    @property
    def arm(self) -> str:
        """What runs of other seeds have in common with this one: the metadata's `arm`, otherwise the run's name without
        its seed (`worst-3` with seed 3 belongs to `worst`)."""
        seed = self.metadata.get("seed")
        return str(self.metadata.get("arm") or self.name.removesuffix(f"-{seed}") or self.name)

    @property
    def rounds(self) -> list[int]:
        """The complete rounds, ascending."""
        return round_numbers(self.path, "rounds")

    @property
    def evaluation_rounds(self) -> list[int]:
        """The rounds after which evaluation episodes were made, ascending; 0 is before training."""
        return self._complete("evaluations")

    @property
    def snapshot_rounds(self) -> list[int]:
        """The complete rounds that have a snapshot, ascending."""
        return self._complete("snapshots")

    @property
    def policy_rounds(self) -> list[int]:
        """The complete rounds of a language model that can be scored and replayed, ascending."""
        return self._complete("policies")

    @property
    def checkpoint_rounds(self) -> list[int]:
        """The complete rounds that training can go on from, ascending."""
        return self._complete("checkpoints")

    def records(self, round: int) -> pa.Table:
        """Every record of a complete round, in buffer order.

        Raises:
            RollsightError: there is no such round, or its file is damaged.
        """
        table = parse(self._existing("records", round), self._content(round))
        return _with_names_of_today(table, renamed(self.metadata, "records"))

    def rows(
        self,
        kind: Literal["records", "rounds", "evaluations", "findings"],
        columns: Sequence[str] | None = None,
        rounds: Collection[int] | None = None,
    ) -> pa.Table:
        """These columns of every complete round, in order of rounds, null where a round has none of that name.

        Many times faster than SQL, and it leaves no database open: for comparing hundreds of runs.

        Args:
            columns: all of them by default.
            rounds: only these rounds.

        Raises:
            RollsightError: a file is damaged.
        """
        self._say(kind)
        names = renamed(self.metadata, kind)
        asked = None
        if columns is not None:
            asked = [*columns, *(old for old, new in names.items() if new in columns)]
        tables = [
            _with_names_of_today(
                parse(round_path(self.path, kind, round), self._files.content(kind, round), asked), names
            )
            for round in self._complete(kind)
            if rounds is None or round in rounds
        ]
        if columns is None:
            return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
        empty = pa.table({name: pa.nulls(0) for name in columns})  # pa.array would import pandas
        return pa.concat_tables([empty, *tables], promote_options="permissive").select(list(columns))

    def summary(self, round: int) -> dict[str, Any]:
        """The summary of a complete round.

        Raises:
            RollsightError: there is no such round, or its file is damaged.
        """
        table = parse(self._existing("rounds", round), self._files.content("rounds", round))
        rows: list[dict[str, Any]] = _with_names_of_today(table, renamed(self.metadata, "rounds")).to_pylist()
        return rows[0] if rows else {}

    def frame(
        self,
        table: Literal["records", "rounds", "evaluations"],
        rounds: Collection[int] | None = None,
        columns: Sequence[str] | None = None,
        as_: Library = "pandas",
    ) -> Any:
        """A table of the run as a data frame: one row per record, complete round or evaluation episode.

        rounds: those to read, None for all; the records of many rounds are large.
        columns: None for all of them; null where a round has none of that name.
        `as_`: "pandas", "polars" or "arrow".

        Raises:
            RollsightError: there is no such table or round, a file is damaged, or the library is not installed.
        """
        if table not in TABLES:
            raise RollsightError(f"there is no table {table!r}: choose from {', '.join(TABLES)}")
        for round in rounds or ():
            self._existing(table, round)
        return as_frame(self.rows(table, columns, rounds), as_)

    def to_pandas(self, table: Literal["records", "rounds", "evaluations"] = "records") -> Any:
        """A whole table as a pandas data frame; `frame` takes a part of it."""
        return self.frame(table)

    def top(
        self,
        n: int = 10,
        target: str | None = None,
        round: int | None = None,
        *,
        lowest: bool = False,
        as_: Library = "pandas",
    ) -> Any:
        """The n valid records of a round that helped the target most, best first, as a data frame with their `rank`
        and `score`; those that hurt it most with `lowest`.

        target: None for the first that is stored; round: None for the last that has its scores.

        Raises:
            RollsightError: no scores of the target are stored, or the library is not installed.
        """
        round, target = scored_round(self, target, round)
        records = self.records(round)
        ranked = rank_records(records, column_as_floats(records, f"{SCORE_PREFIX}{target}"), n, lowest=lowest)
        return as_frame(pa.Table.from_pylist(ranked), as_)

    def states(self, kind: Kind) -> dict[int, tuple[int, int]]:
        """Round -> when its file of this kind was written and its size in bytes: what differs where it was replaced."""
        found = {}
        for round in self._complete(kind):
            with contextlib.suppress(FileNotFoundError):  # gone since the folder was listed
                file = os.stat(round_path(self.path, kind, round))
                found[round] = (file.st_mtime_ns, file.st_size)
        return found

    def targets(self, round: int) -> list[str]:
        """The targets whose scores are stored for a round, in order; empty where the round was not scored."""
        path, content = self._existing("records", round), self._content(round)
        names = [name for name in _schema(path, content).names if name.startswith(SCORE_PREFIX)]
        scores = parse(path, content, names)
        return [name.removeprefix(SCORE_PREFIX) for name in names if scores[name].null_count < len(scores)]

    def snapshot_path(self, round: int) -> Path:
        """Where a round's snapshot lies.

        Raises:
            RollsightError: the round has none (the message names those that do), or it is damaged.
        """
        path = self._verified("snapshots", round)
        self._say("snapshots")
        return path

    def policy_path(self, round: int) -> Path:
        """Where what a language model's round started from lies.

        Raises:
            RollsightError: the round has none (the message names those that do), or it is damaged.
        """
        return self._verified("policies", round)

    def checkpoint_path(self, round: int) -> Path:
        """Where a round's checkpoint lies.

        Raises:
            RollsightError: the round has none (the message names those that do), or it is damaged.
        """
        return self._verified("checkpoints", round)

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Run a DuckDB query over the run and return its result, already computed.

        The tables are `records`, `rounds`, `evaluations` and `findings` (one row per record, complete round, evaluation
        episode, finding of the doctor) and `run` (one row: the metadata, nested entries as JSON).

        Raises:
            RollsightError: the query is wrong, asks for a table that has no rows yet, or meets a damaged file.
        """
        # Here, not above: a process that only writes need not load it, and DuckDB 2.0 complains of leaks where a worker
        # process that did ends.
        import duckdb

        if self._database is None:
            self._database = duckdb.connect()
        # Views only for what the query names: binding one opens every file, and a damaged file elsewhere does no harm.
        asked = [table for table in TABLES if re.search(rf"\b{table}\b", query, re.IGNORECASE)]
        files: dict[Kind, list[Path]] = {}
        for table in asked:
            rounds = self._complete(table)
            self._say(table)
            self._files.check(table, rounds)
            files[table] = [round_path(self.path, table, round) for round in rounds]
        try:
            for table, paths in files.items():
                if paths:
                    selected = select_rows(self._database, paths, renamed(self.metadata, table))
                    self._database.execute(f"create or replace view {table} as {selected}")
            self._database.execute(f"create or replace view run as {select_metadata(self.path, self.metadata)}")
            relation: Any = self._database.sql(query)
            if relation is not None:
                # Computed here, so that every error of the query is met here.
                return cast("duckdb.DuckDBPyRelation", relation.materialize())
        except duckdb.Error as error:
            raise RollsightError(self._explain(error, files)) from error
        raise RollsightError(f"the query returns no table: write a SELECT over {', '.join(TABLES)} or run")

    def view(self, height: int = 760) -> Any:
        """The explorer on this run, for the last line of a notebook's cell; its `url` elsewhere.

        height: of the cell, in pixels.

        Raises:
            ModuleNotFoundError: the extra `explorer` is not installed.
        """
        # By its name, because a run needs no explorer, which stands on it.
        notebook = importlib.import_module("rollsight.explorer.notebook")
        return notebook.View(self.path, height)

    def _content(self, round: int) -> bytes:
        self._say("records")
        return self._files.content("records", round)

    def _say(self, kind: Kind) -> None:
        """Warn, once, of what a look at this kind of file does not show."""
        if kind in self._said:
            return
        self._said.add(kind)
        if kind != "rounds":
            self._say("rounds")  # a round without its summary is in no table
        if gone := self._files.missing(kind):
            what, left = f"{kind} of {_plural(gone)} are missing", ""
            if kind == "rounds":
                what, left = f"summary of {_plural(gone)} is missing", ", and with it all rows of the round"
            elif kind == "records":
                left = self._rows_left()
            warnings.warn(f"{self.path}: the {what}{left}", stacklevel=4)
        if foreign := self._files.unlisted(kind, self._complete(kind)):
            warnings.warn(
                f"{self.path}: the {kind} of {_plural(foreign)} cannot be verified ({DIGESTS} does not list them): "
                f"rollsight check {self.path}",
                stacklevel=4,
            )

    def _rows_left(self) -> str:
        """How many of the records are there."""
        try:
            summaries = self.rows("rounds", ["round", "records"]).to_pylist()
        except RollsightError:  # the summaries do not say
            return ""
        records = {row["round"]: row["records"] or 0 for row in summaries}
        left = sum(records.get(round, 0) for round in self._complete("records"))
        return f", {left:,} of {sum(records.values()):,} are left" if any(records.values()) else ""

    def _complete(self, kind: Kind) -> list[int]:
        """The rounds with a file of this kind, without those in flight: only the summary makes a round complete."""
        rounds = set(self.rounds)
        if kind == "evaluations":
            rounds.add(0)
        return [number for number in round_numbers(self.path, kind) if number in rounds]

    def _verified(self, kind: Kind, round: int) -> Path:
        path = self._existing(kind, round)
        self._files.check(kind, [round])
        return path

    def _existing(self, kind: Kind, round: int) -> Path:
        stored = self._complete(kind)
        if round not in stored:
            exist = f"the rounds with {kind} are {spell(stored)}" if stored else f"no round has {kind} yet"
            raise RollsightError(f"round {round} of {self.path} has no {kind}: {exist}")
        return round_path(self.path, kind, round)

    def _explain(self, error: duckdb.Error, files: dict[Kind, list[Path]]) -> str:
        import duckdb

        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        for table in (table for table, paths in files.items() if not paths):
            if f"name {table} " in lines[0].lower():
                return f"the run {self.path} holds no {table} (yet): ask for another table, or wait for its next round"
        # The mistakes of a query need no look at the files; anything else may come from a damaged one.
        if not isinstance(error, duckdb.ParserException | duckdb.BinderException | duckdb.CatalogException):
            for path in (path for paths in files.values() for path in paths):
                parse(path, read_bytes(path))
        hint = "".join(f" ({line})" for line in lines[1:] if line.startswith(("Candidate", "Did you mean")))
        return f"the query failed: {lines[0]}{hint}"


def _with_names_of_today(table: pa.Table, names: Mapping[str, str]) -> pa.Table:
    """The table without old names of columns, as `renamed` gives them."""
    return table.rename_columns(
        [
            names[name] if name in names and names[name] not in table.column_names else name
            for name in table.column_names
        ]
    )


def _schema(path: Path, content: bytes) -> pa.Schema:
    return _opened(path, content).schema_arrow


def parse(path: Path, content: bytes, columns: list[str] | None = None) -> pa.Table:
    """The table, or some columns of it, that the bytes of a file hold.

    Raises:
        RollsightError: they are not Parquet.
    """
    try:
        # Handing a small file's columns to other threads takes longer than reading them.
        return _opened(path, content).read(columns, use_threads=len(content) > _LARGE)
    except RollsightError:
        raise
    except Exception as error:  # bytes that are not Parquet fail in whatever way the parser comes across them
        raise damaged(path, _NO_PARQUET) from error


def _opened(path: Path, content: bytes) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(pa.BufferReader(content))  # not the path, whose key=value folders it takes as columns
    except Exception as error:
        raise damaged(path, _NO_PARQUET) from error


_LARGE = 2**20  # bytes
_NO_PARQUET = "truncated, or no Parquet"


def _plural(rounds: list[int]) -> str:
    return f"round{'s' if len(rounds) > 1 else ''} {spell(rounds)}"
