"""The one writer of a run folder: append-only, atomic files, an operating-system lock."""

import datetime
import operator
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import unlock_descriptor

from rollsight.arrays import Array
from rollsight.errors import OptionError, RollsightError
from rollsight.runs.digests import DigestList, digest_of, go_on_with_digests, write_digests
from rollsight.runs.layout import (
    DIGESTS,
    LOCK,
    METADATA,
    PLAIN,
    SUFFIXES,
    Kind,
    is_run,
    round_name,
    round_numbers,
    round_path,
    take_lock,
    temporary_files,
    whole_file,
)
from rollsight.runs.metadata import describe_run, jsonable, read_metadata, write_metadata

Column: TypeAlias = Array | Sequence[Any] | pa.Array

# The open writers of this process, by process and real path: a forked child does not take over its parent's.
_open_writers: WeakValueDictionary[tuple[int, Path], "RunWriter"] = WeakValueDictionary()


def create(path: str | Path, metadata: Mapping[str, Any], *, overwrite: bool = False) -> "RunWriter":
    """Start a new run folder and hold it for writing.

    `metadata` is kept in `run.json` next to what the run folder says about itself (format, created, command, versions,
    machine). `overwrite` removes the files of a run that is there already, and only those: never a folder that is not
    a run, never a file that rollsight did not write.

    Raises:
        RollsightError: the folder exists and is not empty, or another process writes to it. An open writer of this
            process is closed first: training that an exception ended left it behind.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise RollsightError(f"{path} is a file: choose another place for the run")
    # What a creation that was killed half-way leaves behind is not content.
    left = {LOCK, *(file.name for file in temporary_files(path))}
    content = set(os.listdir(path)) - left if path.is_dir() else set()
    if content and not is_run(path):
        raise RollsightError(f"{path} exists, is not empty and is not a run: choose another place for the run")
    if content and not overwrite:
        raise OptionError(
            f"the run {path} exists already: choose another place, or replace it with {{overwrite}}", overwrite=True
        )
    described = describe_run(metadata)
    path.mkdir(parents=True, exist_ok=True)
    lock = _lock(path)
    try:
        # In this order, so that a creation killed anywhere leaves what the next one accepts: an empty folder or a run.
        _remove_after(path, -1)
        write_metadata(path, {**described, "digests": {"file": DIGESTS, "from_round": 0}})
        write_digests(path, {}, 0)
        for kind in SUFFIXES:
            (path / kind).mkdir(exist_ok=True)
    except BaseException:
        os.close(lock)
        raise
    return RunWriter(path, lock)


def resume(path: str | Path, after: int | None = None, **how: Any) -> "RunWriter":
    """Hold an existing run folder for writing after its last complete round, or after an earlier one.

    Whatever a killed writer left of the round in flight (temporary files; records, evaluations, snapshots, policies and
    checkpoints of a round that never completed) is removed, and so are the rounds past `after`: training goes on from a
    checkpoint of that round and writes them anew. `run.json` says so in its list `continued`: after which round, which
    rounds were replaced, when, by which command, and the entries of `how`.

    Raises:
        RollsightError: the folder is not a run, ends before round `after`, or another process writes to it.
    """
    path = Path(path)
    if not is_run(path):
        raise RollsightError(f"{path} is not a run (it has no {METADATA}): create the run first")
    lock = _lock(path)
    try:
        metadata = read_metadata(path)  # refuses a folder of a later format
        complete = round_numbers(path, "rounds")
        last = max(complete, default=0)
        after = last if after is None else operator.index(after)
        if not 0 <= after <= last:
            raise RollsightError(
                f"the run {path} ends with round {last} and cannot be continued after round {after}: choose another "
                "place for the run"
            )
        entry = {
            "after_round": after,
            "replaced_rounds": [round for round in complete if round > after],
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "command": list(sys.argv),
            **jsonable(how),
        }
        # Said before it is done: rounds that are gone without a word could not be told from damage.
        first = (metadata.get("digests") or {}).get("from_round", after + 1)  # earlier versions wrote none
        metadata["digests"] = {"file": DIGESTS, "from_round": min(first, after + 1)}
        write_metadata(path, {**metadata, "continued": [*(metadata.get("continued") or []), entry]})
        _remove_after(path, after)
        go_on_with_digests(path, after)
        for kind in SUFFIXES:
            (path / kind).mkdir(exist_ok=True)  # a creation killed half-way may have made none
    except BaseException:
        os.close(lock)
        raise
    return RunWriter(path, lock)


class RunWriter:
    """Appends rounds to a run folder. Rounds count from 1; `write_round` comes last and makes the round complete."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock: int | None = lock
        self._process = os.getpid()
        self._last_round = max(round_numbers(path, "rounds"), default=0)
        self._taken_over = False
        self._digests = DigestList(path)
        self._unlisted: dict[str, str] = {}  # digests of the files of the round in flight
        _open_writers[_key(path)] = self

    @property
    def last_round(self) -> int:
        """The last complete round, 0 when there is none."""
        return self._last_round

    def write_records(self, round: int, columns: Mapping[str, Column]) -> None:
        """Write every record of a round, one entry per record in each column.

        A list may hold None (null) and lists; an array of shape (N, ...) becomes fixed-size lists.

        Raises:
            RollsightError: the round is written already, or the columns differ in length or hold what Parquet cannot.
        """
        self._write_table("records", self._next(round), as_table(columns))

    def write_round(self, round: int, summary: Mapping[str, Any]) -> None:
        """Write the round's one-row summary (scalars or None by name) and thereby complete the round.

        Raises:
            RollsightError: the round is not after the last complete one, or a value is not a scalar.
        """
        round = self._next(round)
        self._write_table("rounds", round, as_table({"round": [round]} | {name: [v] for name, v in summary.items()}))
        self._last_round = round

    def write_evaluation(
        self, round: int, returns: Column, lengths: Column, more: Mapping[str, Column] | None = None
    ) -> None:
        """Write the evaluation episodes made after a round, return and length of each, and `more` columns where there
        are any; round 0 is before training.

        Raises:
            RollsightError: the round has its evaluation already, or the columns differ in length.
        """
        columns: dict[str, Column] = {
            "round": np.full(len(returns), round, np.int64),
            "episode": np.arange(len(returns)),
            "return": np.asarray(returns, np.float64),
            "length": np.asarray(lengths, np.int64),
            **(more or {}),
        }
        self._write_table("evaluations", round, as_table(columns))

    def write_findings(self, round: int, columns: Mapping[str, Column]) -> None:
        """Write what the doctor found first in this round, one entry per finding in each column.

        Raises:
            RollsightError: the round has its findings already, or the columns differ in length.
        """
        self._write_table("findings", self._next(round), as_table(columns))

    def write_snapshot(self, round: int, write: Callable[[BinaryIO], None]) -> None:
        """Write the round's snapshot; `write` puts its bytes into the open binary file it is given.

        Raises:
            RollsightError: the round has its snapshot already.
        """
        self._write_bytes("snapshots", round, write)

    def remove_snapshot(self, round: int) -> None:
        """Remove a round's snapshot, for example when a later one replaces it; harmless where there is none."""
        self._remove("snapshots", round)

    def write_policy(self, round: int, write: Callable[[BinaryIO], None]) -> None:
        """Write what a language model's round started from; `write` puts its bytes into the open binary file.

        Raises:
            RollsightError: the round has it already.
        """
        self._write_bytes("policies", round, write)

    def write_checkpoint(self, round: int, write: Callable[[BinaryIO], None]) -> None:
        """Write what training goes on from after this round; `write` puts its bytes into the open binary file.

        Raises:
            RollsightError: the round has its checkpoint already.
        """
        self._write_bytes("checkpoints", round, write)

    def remove_checkpoint(self, round: int) -> None:
        """Remove a round's checkpoint when a later one replaces it; harmless where there is none."""
        self._remove("checkpoints", round)

    def close(self) -> None:
        """Let another writer in. Closing twice is harmless."""
        if self._lock is not None:
            if os.getpid() == self._process:  # a child that was forked meanwhile holds the lock too
                unlock_descriptor(self._lock)
            os.close(self._lock)
            self._lock = None

    def __del__(self) -> None:
        self.close()  # an open descriptor holds the lock for as long as the process lives

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _next(self, round: int) -> int:
        round = operator.index(round)
        if round <= self._last_round:
            raise RollsightError(
                f"round {round} is not after the last complete round {self._last_round} of {self.path}: "
                "a run is append-only"
            )
        return round

    def _check_open(self) -> None:
        if self._taken_over:
            raise RollsightError(
                f"a later writer of this process has taken over the run {self.path}: write with that one"
            )
        if self._lock is None:
            raise RollsightError(f"the writer of {self.path} is closed: resume the run to write to it")

    def _new_path(self, kind: Kind, round: int) -> Path:
        self._check_open()
        first = 0 if kind == "evaluations" else 1
        if operator.index(round) < first:
            raise RollsightError(f"round {round} cannot have {kind}: rounds count from {first} there")
        path = round_path(self.path, kind, operator.index(round))
        if path.exists():
            raise RollsightError(f"{path} is written already: a run is append-only")
        return path

    def _write_table(self, kind: Kind, round: int, table: pa.Table) -> None:
        # No dictionaries: the columns hold few repeated values, and building them triples the time.
        self._write(kind, round, lambda path: pq.write_table(table, path, compression="zstd", use_dictionary=False))

    def _write_bytes(self, kind: Kind, round: int, write: Callable[[BinaryIO], None]) -> None:
        def into(path: Path) -> None:
            with path.open("wb") as file:
                write(file)

        self._write(kind, round, into)

    def _remove(self, kind: Kind, round: int) -> None:
        self._check_open()
        path, name = round_path(self.path, kind, round), round_name(kind, round)
        if self._unlisted.pop(name, None) is None and path.exists():
            self._digests.removed(name)
        path.unlink(missing_ok=True)

    def _write(self, kind: Kind, round: int, write: Callable[[Path], None]) -> None:
        path, name, listed = self._new_path(kind, round), round_name(kind, round), self._digests.size
        try:
            with whole_file(path) as temporary:
                write(temporary)
                self._unlisted[name] = digest_of(temporary)
                if completes := kind == "rounds" or round <= self._last_round:
                    self._digests.add(self._unlisted)  # before the file appears: what readers see is listed
        except BaseException:
            self._digests.cut(listed)
            self._unlisted.pop(name, None)
            raise
        if completes:
            self._unlisted.clear()
            self._digests.complete(max(round, self._last_round))


def _lock(path: Path) -> int:
    """The open, exclusively locked lock file. The system releases it with the process, also after kill -9."""
    if (earlier := _open_writers.pop(_key(path), None)) is not None and earlier._lock is not None:
        earlier.close()
        earlier._taken_over = True
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | PLAIN, 0o644)
    try:
        if not take_lock(descriptor):
            raise RollsightError(f"another process is writing to the run {path}: wait for it, or choose another place")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _key(path: Path) -> tuple[int, Path]:
    return os.getpid(), path.resolve()


def _remove_after(run: Path, last: int) -> None:
    """Remove temporary files, and files of rounds later than `last`."""
    for kind in SUFFIXES:
        for round in round_numbers(run, kind):
            if round > last:
                round_path(run, kind, round).unlink()
    for folder in (run, *(run / kind for kind in SUFFIXES)):
        for temporary in temporary_files(folder):
            temporary.unlink()


def as_table(columns: Mapping[str, Column]) -> pa.Table:
    """Columns of one length as the table that is written of them.

    Raises:
        RollsightError: they differ in length, or hold what Parquet cannot.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise RollsightError(f"columns of one table must have equal lengths, these have {lengths}")
    return pa.table({name: _array(name, values) for name, values in columns.items()})


def _array(name: str, values: Column) -> pa.Array:
    """A column of Parquet: (N, ...) arrays as nested fixed-size lists, None as null, NaN as NaN."""
    if isinstance(values, pa.Array):
        return values
    try:
        if isinstance(values, np.ndarray) and values.ndim > 1 and values.size > 0:
            array = pa.array(np.ascontiguousarray(values).reshape(-1))
            for size in reversed(values.shape[1:]):
                array = pa.FixedSizeListArray.from_arrays(array, size)
            return array
        if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype != object:
            return pa.array(values)
        # Arrow takes one-dimensional arrays as entries of a list, and no others.
        return pa.array([v.tolist() if isinstance(v, np.ndarray) and v.ndim != 1 else v for v in values])
    except (pa.ArrowException, TypeError) as error:
        raise RollsightError(f"the column {name!r} cannot be stored: {str(error).splitlines()[0]}") from error
