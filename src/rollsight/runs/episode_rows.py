"""The steps of an episode over the rounds of a run, and the records' tables that were read last."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from rollsight.errors import RollsightError
from rollsight.runs.layout import round_path
from rollsight.runs.reader import Run

ROW = "row"  # the place of a record in its round, which is added to the columns
_KEPT_BYTES = 128 * 2**20  # of tables that were read last
_tables: OrderedDict[tuple[Path, int, int], pa.Table] = OrderedDict()


def records(run: Run, round: int) -> pa.Table:
    """A round's records with their places, kept for the next question."""
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
