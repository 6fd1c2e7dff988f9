"""What the pages read: tables of the runs that are served, each file read once, safe for several threads.

Nothing else of the explorer opens a run folder, and here it is `rollsight.runs` that does. Every file is read only.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.explorer.tables import arm_of, task_of

_RECORDS_KEPT = 160 * 2**20  # bytes of records tables that stay in memory


_Table = Literal["rounds", "evaluations"]
_hearing = threading.Lock()  # Python's warnings are caught for the whole process


@dataclass
class _Rows:
    """The rows of a table as they were last read.

    token: the run's change token then.
    states: each round's file then.
    table: all rows.
    """

    token: str
    states: dict[int, tuple[int, int]]
    table: pa.Table


@dataclass
class _Shown:
    """One run as far as it was read. Lock before use: a `Run` is for one thread.

    run: the opened run.
    lock: held while the run is read.
    tables: what was read, by table.
    problems: what reading said, once each.
    """

    run: runs.Run
    lock: threading.RLock = field(default_factory=threading.RLock)
    tables: dict[_Table, _Rows] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)  # what reading said, once each


class Reading:
    """The runs that are served, by name.

    Names are those of the folders; where two folders are called alike, the later is `parent~name`.
    """

    def __init__(self, folders: Iterable[str | Path]) -> None:
        """folders: runs, or folders of runs, whose new runs show as they come.

        Raises:
            RollsightError: a folder is neither.
        """
        self._given = [Path(folder) for folder in folders]
        for folder in self._given:
            if not folder.is_dir():
                raise RollsightError(f"{folder} is not a folder: name a run, or a folder of runs")
        self._lock = threading.RLock()
        self._shown: dict[str, _Shown] = {}
        self._paths: dict[str, Path] = {}
        self._records: OrderedDict[tuple[str, int, str], pa.Table] = OrderedDict()

    def names(self) -> list[str]:
        """The runs that are there now, in order."""
        with self._lock:
            known = set(self._paths.values())
            for given in self._given:
                for path in [given] if runs.is_run(given) else runs.find_runs(given):
                    if path in known:
                        continue
                    name = path.resolve().name
                    if name in self._paths:
                        name = f"{path.resolve().parent.name}~{name}"
                    while name in self._paths:
                        name += "'"
                    self._paths[name] = path
            return [name for name, path in self._paths.items() if runs.is_run(path)]

    def run(self, name: str) -> runs.Run:
        """The run of this name, for reading in one thread: a new one for each call.

        Raises:
            RollsightError: no such run is served, or its run.json cannot be read.
        """
        return runs.open(self.path(name))

    def metadata(self, name: str) -> dict[str, Any]:
        """What run.json says.

        Raises:
            RollsightError: as `run`.
        """
        return self._open(name).run.metadata

    def token(self, name: str) -> str:
        """What changes whenever rows of the run do. Cheap: two looks at the file system."""
        path = self.path(name)
        seen = []
        for part in (path / "rounds", path / "SHA256SUMS", path / "run.json"):
            try:
                found = part.stat()
            except OSError:
                continue
            seen.append(f"{found.st_mtime_ns:x}")
        return "-".join(seen)

    def round_numbers(self, name: str) -> list[int]:
        """The complete rounds, ascending."""
        return self._open(name).run.rounds

    def rounds(self, name: str) -> pa.Table:
        """The summaries of all complete rounds, one row each, all columns.

        Raises:
            RollsightError: a file is damaged.
        """
        return self._rows(name, "rounds")

    def evaluations(self, name: str) -> pa.Table:
        """One row per evaluation episode; no rows where there are none.

        Raises:
            RollsightError: a file is damaged.
        """
        return self._rows(name, "evaluations")

    def records(self, name: str, round: int) -> pa.Table:
        """Every record of a complete round, in buffer order.

        Raises:
            RollsightError: there is no such round, or its file is damaged.
        """
        shown = self._open(name)
        key = (name, round, self.token(name))
        with self._lock:
            if (table := self._records.get(key)) is not None:
                self._records.move_to_end(key)
                return table
        with shown.lock:
            table = self._heard(shown, lambda: shown.run.records(round))
        with self._lock:
            self._records[key] = table
            while len(self._records) > 1 and sum(kept.nbytes for kept in self._records.values()) > _RECORDS_KEPT:
                self._records.popitem(last=False)
        return table

    def record_counts(self, name: str) -> dict[int, int]:
        """Round -> how many records its file has, from the ends of the files; damaged ones are left out."""
        shown = self._open(name)
        with shown.lock:
            return shown.run.record_counts()

    def targets(self, name: str, round: int) -> list[str]:
        """The targets whose scores are stored for a round, in order."""
        table = self.records(name, round)
        columns = [column for column in table.column_names if column.startswith("score_")]
        return [column.removeprefix("score_") for column in columns if table[column].null_count < len(table)]

    def summary(self, name: str) -> dict[str, Any]:
        """What the list of runs shows of it, from run.json and the newest round alone."""
        shown, metadata = self._open(name), self.metadata(name)
        numbers = shown.run.rounds
        last: dict[str, Any] = {}
        if numbers:
            with shown.lock:
                last = self._heard(shown, lambda: shown.run.rows("rounds", rounds=numbers[-1:])).to_pylist()[0]
        performance = last.get("return_mean") if last.get("return_mean") is not None else last.get("reward_mean")
        return {
            "task": task_of(metadata),
            "algorithm": str(metadata.get("algo") or ""),
            "arm": arm_of(metadata),
            "seed": metadata.get("seed"),
            "rounds": len(numbers),
            "last": performance,
            "kept": last.get("kept_frac"),
            "halves": last.get("trust_split_half"),
            "warnings": last.get("warnings") or "",
            "created": metadata.get("created"),
        }

    def problems(self, name: str) -> list[str]:
        """What reading said of files that are gone or cannot be verified, as far as they were read."""
        return list(self._open(name).problems)

    def _rows(self, name: str, kind: _Table) -> pa.Table:
        shown, token = self._open(name), self.token(name)
        with shown.lock:
            before = shown.tables.get(kind)
            if before is not None and before.token == token:
                return before.table
            states = shown.run.states(kind)
            rounds: set[int] | None = None
            if before is not None and all(states.get(number) == state for number, state in before.states.items()):
                rounds = states.keys() - before.states.keys()  # nothing was replaced: only new rounds are read
            table: pa.Table = self._heard(shown, lambda: shown.run.rows(kind, rounds=rounds))
            if rounds is not None and before is not None:
                table = pa.concat_tables([before.table, table], promote_options="permissive")
            shown.tables[kind] = _Rows(token, states, table)
            return table

    def _heard(self, shown: _Shown, read: Callable[[], pa.Table]) -> pa.Table:
        with _hearing, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            table = read()
        shown.problems.update({str(one.message): "" for one in said})
        return table

    def _open(self, name: str) -> _Shown:
        with self._lock:
            if name not in self._shown:
                self._shown[name] = _Shown(self.run(name))
            return self._shown[name]

    def path(self, name: str) -> Path:
        """The run's folder.

        Raises:
            RollsightError: no such run is served.
        """
        if name not in self._paths and name not in self.names():
            raise RollsightError(f"no run called {name!r} is shown here: start from the list of runs")
        return self._paths[name]
