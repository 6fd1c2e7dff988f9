"""What the pages read: tables of the runs that are served, each file read once, safe for several threads.

Nothing else of the explorer opens a run folder, and here it is `rollsight.runs` that does. Every file is read only.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.explorer.tables import task_of

_RECORDS_KEPT = 160 * 2**20  # bytes of records tables that stay in memory
_AT_ONCE = 50  # files read before another page may read some
_POINTS = 200  # of a curve among those of several runs
_LISTED = ("return_mean", "reward_mean", "kept_frac", "trust_split_half", "warnings")

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
    seen: other answers, by question: the run's change token then, and the answer.
    asked: held while such an answer is found, so that nobody finds it a second time meanwhile.
    """

    run: runs.Run
    lock: threading.RLock = field(default_factory=threading.RLock)
    tables: dict[_Table, _Rows] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    seen: dict[str, tuple[str, Any]] = field(default_factory=dict)
    asked: threading.Lock = field(default_factory=threading.Lock)


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
        """What changes whenever rows of the run do."""
        return runs.change_token(self.path(name))

    def round_numbers(self, name: str) -> list[int]:
        """The complete rounds, ascending."""
        return self._open(name).run.rounds

    def rounds(self, name: str) -> pa.Table:
        """The summaries of all complete rounds, one row each, all columns.

        Raises:
            RollsightError: a file is damaged.
        """
        return self._rows(name, "rounds")

    def curve(self, name: str) -> pa.Table:
        """Round, return and reward of the complete rounds; of evenly spread ones where there are very many.

        Raises:
            RollsightError: a file is damaged.
        """
        shown, token = self._open(name), self.token(name)
        read = shown.tables.get("rounds")
        if read is not None and read.token == token:
            return read.table

        def few() -> pa.Table:
            numbers = shown.run.rounds
            if len(numbers) > _POINTS:
                step = (len(numbers) - 1) / (_POINTS - 1)
                numbers = [numbers[round(place * step)] for place in range(_POINTS)]
            # A run of its own: another thread may be reading all rounds, which takes longer.
            run = self.run(name)
            columns = ("round", "return_mean", "reward_mean")
            return self._heard(shown, lambda: run.rows("rounds", columns, set(numbers)))

        return self._once(shown, token, "curve", few)

    def prepare(self, names: Iterable[str]) -> None:
        """Read the summaries of these runs in a thread of its own, so that their pages need not wait for them."""

        def read() -> None:
            for name in names:
                with contextlib.suppress(RollsightError):  # the pages say it
                    self.rounds(name)

        threading.Thread(target=read, name="rollsight-reading", daemon=True).start()

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

    def completeness(self, name: str) -> runs.Completeness:
        """What of the run is there, and what is not.

        Raises:
            RollsightError: as `run`.
        """
        return runs.completeness(self._open(name).run)

    def targets(self, name: str, round: int) -> list[str]:
        """The targets whose scores are stored for a round, in order."""
        table = self.records(name, round)
        columns = [column for column in table.column_names if column.startswith("score_")]
        return [column.removeprefix("score_") for column in columns if table[column].null_count < len(table)]

    def summary(self, name: str) -> dict[str, Any]:
        """What the list of runs shows of it, from run.json and the newest round alone."""
        shown, metadata = self._open(name), self.metadata(name)

        def newest() -> tuple[int, dict[str, Any]]:
            run = self.run(name)  # as in `curve`
            if not (numbers := run.rounds):
                return 0, {}
            last = self._heard(shown, lambda: run.rows("rounds", _LISTED, numbers[-1:]))
            return len(numbers), last.to_pylist()[0]

        rounds, last = self._once(shown, self.token(name), "newest", newest)
        performance = last.get("return_mean") if last.get("return_mean") is not None else last.get("reward_mean")
        return {
            "task": task_of(metadata),
            "algorithm": str(metadata.get("algo") or ""),
            "arm": self.run(name).arm,
            "seed": metadata.get("seed"),
            "rounds": rounds,
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
            tables = []
            if before is not None and all(states.get(number) == state for number, state in before.states.items()):
                tables.append(before.table)  # nothing was replaced: only new rounds are read
            unread = sorted(states.keys() - (before.states.keys() if before is not None and tables else set()))
            for first in range(0, len(unread), _AT_ONCE):
                some = unread[first : first + _AT_ONCE]
                tables.append(self._heard(shown, partial(shown.run.rows, kind, rounds=some)))
            table = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
            shown.tables[kind] = _Rows(token, states, table)
            return table

    def _once(self, shown: _Shown, token: str, question: str, answer: Callable[[], Any]) -> Any:
        with shown.asked:
            before = shown.seen.get(question)
            if before is None or before[0] != token:
                before = shown.seen[question] = token, answer()
            return before[1]

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
