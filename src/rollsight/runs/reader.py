"""Read a run folder, also while it is being written: metadata, rounds, records, snapshots, SQL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from rollsight.errors import RollsightError
from rollsight.runs.layout import METADATA, TABLES, Kind, find_runs, is_run, round_numbers, round_path, spell
from rollsight.runs.metadata import read_metadata

if TYPE_CHECKING:
    import duckdb

SCORE_PREFIX = "score_"  # a target's scores are stored in the column score_<target>


def open_run(path: str | Path) -> Run:
    """Open a run folder for reading.

    Raises:
        RollsightError: the folder is no run; the message names runs in it or beside it.
    """
    path = Path(path)
    if not is_run(path):
        problem = f"it has no {METADATA}" if path.exists() else "there is no such folder"
        near = find_runs(path) or find_runs(path.parent)
        names = ", ".join(str(run) for run in near[:5]) + (", ..." if len(near) > 5 else "")
        raise RollsightError(f"{path} is no run ({problem}): name a run folder{f' such as {names}' if near else ''}")
    return Run(path)


class Run:
    """A run folder, read only. Rounds completed after it was opened show as they come. For use in one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.resolve().name
        self.metadata = read_metadata(path)
        self._database: duckdb.DuckDBPyConnection | None = None

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

    def records(self, round: int) -> pa.Table:
        """Every record of a complete round, in buffer order.

        Raises:
            RollsightError: there is no such round, or its file is damaged.
        """
        return _read(self._existing("records", round))

    def rows(self, kind: Literal["rounds", "evaluations"], columns: list[str]) -> pa.Table:
        """These columns of every complete round, in order of rounds, null where a round has none of that name.

        Many times faster than SQL, and it leaves no database open: for comparing hundreds of runs.

        Raises:
            RollsightError: a file is damaged.
        """
        empty = pa.table({name: pa.array([], pa.null()) for name in columns})
        tables = [_read(round_path(self.path, kind, round), columns) for round in self._complete(kind)]
        return pa.concat_tables([empty, *tables], promote_options="permissive")

    def targets(self, round: int) -> list[str]:
        """The targets whose scores are stored for a round, in order; empty where the round was not scored."""
        path = self._existing("records", round)
        names = [name for name in _open_parquet(path).schema_arrow.names if name.startswith(SCORE_PREFIX)]
        scores = _read(path, names)
        return [name.removeprefix(SCORE_PREFIX) for name in names if scores[name].null_count < len(scores)]

    def snapshot_path(self, round: int) -> Path:
        """Where a round's snapshot lies.

        Raises:
            RollsightError: the round has none; the message names those that do.
        """
        return self._existing("snapshots", round)

    def sql(self, query: str) -> duckdb.DuckDBPyRelation:
        """Run a DuckDB query over the run and return its result, already computed.

        The tables are `records`, `rounds` and `evaluations` (one row per record, complete round, evaluation episode)
        and `run` (one row: the metadata, nested entries as JSON).

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
        files = {table: [round_path(self.path, table, n) for n in self._complete(table)] for table in asked}
        try:
            for table, paths in files.items():
                if paths:
                    self._database.execute(f"create or replace view {table} as {_select(paths)}")
            self._database.execute(f"create or replace view run as {_select_metadata(self.path, self.metadata)}")
            relation: Any = self._database.sql(query)
            if relation is not None:
                # Computed here, so that every error of the query is met here. DuckDB before 2.0 has execute instead.
                computed = relation.materialize() if hasattr(relation, "materialize") else relation.execute()
                return cast("duckdb.DuckDBPyRelation", computed)
        except duckdb.Error as error:
            raise RollsightError(self._explain(error, files)) from error
        raise RollsightError(f"the query returns no table: write a SELECT over {', '.join(TABLES)} or run")

    def _complete(self, kind: Kind) -> list[int]:
        """The rounds with a file of this kind, without those in flight: only the summary makes a round complete."""
        rounds = set(self.rounds)
        if kind == "evaluations":
            rounds.add(0)
        return [number for number in round_numbers(self.path, kind) if number in rounds]

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
                _read(path)
        hint = "".join(f" ({line})" for line in lines[1:] if line.startswith(("Candidate", "Did you mean")))
        return f"the query failed: {lines[0]}{hint}"


def _select(paths: list[Path]) -> str:
    # DuckDB takes *, ? and [ in a file name as a pattern, and key=value folders as columns.
    names = [re.sub(r"([*?\[])", r"[\1]", str(path.absolute())) for path in paths]
    return f"select * from read_parquet([{', '.join(map(_quote, names))}], union_by_name=true, hive_partitioning=false)"


def _select_metadata(run: Path, metadata: dict[str, Any]) -> str:
    types = {str: "VARCHAR", bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE"}
    columns = ", ".join(f"{_quote(name)}: '{types.get(type(value), 'JSON')}'" for name, value in metadata.items())
    name = re.sub(r"([*?\[])", r"[\1]", str((run / METADATA).absolute()))
    return f"select * from read_json({_quote(name)}, columns={{{columns}}})"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)  # not read_table, which takes key=value folders in the path as columns
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise _damaged(path) from error


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return _open_parquet(path).read(columns)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> RollsightError:
    return RollsightError(
        f"{path} is damaged (truncated, or no Parquet): move it aside, the other files of the run are intact"
    )
