"""A behaviour: state-action pairs of a run, explained as their mean log-probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rollsight.analysis.culprits.frozen import SnapshotRounds, check_has_rounds, drawn, joined, key_of
from rollsight.arrays import Ints
from rollsight.errors import RollsightError
from rollsight.policy import Policy
from rollsight.records import Records, Rows, rows_of, take_rows
from rollsight.runs import Run
from rollsight.snapshot import Snapshot
from rollsight.targets import Action

MOST_PAIRS = 1000  # a gradient of a mean over more says the same and costs more
Listed = Mapping[int, Sequence[tuple[int, int]]]  # round -> (env, step) of each record
_COLUMNS = ("round", "env", "step")


@dataclass(frozen=True, eq=False)
class Behaviour:
    """What is explained.

    name: in words.
    key: another one for other pairs; results are kept under it.
    obs: (M, ...) states, as in the run's records.
    actions: (M, ...) what was done in them.
    places: (round, env, step) of each pair.
    found: how many records show the behaviour; more than M where M of them were drawn.
    rounds: those that it can be measured in.
    """

    name: str
    key: str
    obs: Rows
    actions: Rows
    places: Sequence[tuple[int, int, int]]
    found: int
    rounds: SnapshotRounds

    def __len__(self) -> int:
        return len(self.places)

    def target(self) -> Action:
        """The mean of log pi(a given s) over the pairs."""
        return Action(self.obs, self.actions)

    def log_prob(self, policy: Policy, records: Records) -> float:
        """Of the pairs, their mean under a policy; records: any of the run, for their shape."""
        target = self.target()
        measured = target.measured_on(records)
        with torch.no_grad():
            return float(target.terms(policy(measured), measured).mean())


def of_step_query(run: Run, query: str, *, most: int = MOST_PAIRS, name: str | None = None) -> Behaviour:
    """The behaviour of the records that a query over the run selects; it gives the columns round, env and step, or
    whole rows with them.

    Raises:
        RollsightError: the query is wrong, lacks a column or selects nothing.
    """
    relation = run.sql(query)
    if missing := [column for column in _COLUMNS if column not in relation.columns]:
        raise RollsightError(
            f'the query gives no column {" and no ".join(missing)}: write one such as "select round, env, step from '
            'records where action = 1"'
        )
    rows = set(relation.project(", ".join(_COLUMNS)).fetchall())
    if any(None in row for row in rows):
        raise RollsightError("the query gives records without round, env or step: select rows of the table records")
    if not rows:
        raise RollsightError(
            f'this behaviour never occurs: "{query}" selects no record of {run.path}; check the condition with '
            "rollsight sql"
        )
    listed: dict[int, list[tuple[int, int]]] = {}
    for round, env, step in sorted(rows):
        listed.setdefault(round, []).append((env, step))
    return of_records(run, listed, most=most, name=name or query)


def of_records(run: Run, listed: Listed, *, most: int = MOST_PAIRS, name: str | None = None) -> Behaviour:
    """The behaviour of listed records: the action that each shows, in its state.

    States and actions come from the rounds' snapshots, and in rounds without one from the stored records where these
    hold them. most: so many pairs are used, drawn at random where there are more.

    Raises:
        RollsightError: there is no such record, or nothing holds its state.
    """
    every = [(round, env, step) for round, pairs in sorted(listed.items()) for env, step in sorted(set(pairs))]
    if not every:
        raise RollsightError("a behaviour needs at least one record")
    check_has_rounds(run)
    chosen = [every[index] for index in drawn(len(every), most)]
    parts: list[tuple[Rows, Rows]] = []
    places: list[tuple[int, int, int]] = []
    for round in sorted({one[0] for one in chosen}):
        pairs = [one for one in chosen if one[0] == round]
        obs, actions, valid = _pairs_of(run, round, pairs)
        parts.append((obs, actions))
        places += [one for one, good in zip(pairs, valid, strict=True) if good]
    obs, actions = (joined([part[side] for part in parts]) for side in (0, 1))
    if rows_of(obs) == 0:
        raise RollsightError(f"none of the {len(every)} records is valid (a reset row shows no action): choose others")
    spelled = ":".join(map(str, every[0])) if len(every) == 1 else f"{len(every)} records"
    key = key_of(run, most, every)
    return Behaviour(name or spelled, key, obs, actions, places, len(every), SnapshotRounds(run))


def _pairs_of(run: Run, round: int, pairs: Sequence[tuple[int, int, int]]) -> tuple[Rows, Rows, list[bool]]:
    """Observations and actions of records of one round, without invalid ones, and which are valid."""
    if round not in run.rounds:
        raise RollsightError(f"{run.path} has no round {round}: its rounds are {run.rounds[0]} to {run.rounds[-1]}")
    snapshots = run.snapshot_rounds
    records = Snapshot.load(run.snapshot_path(round if round in snapshots else snapshots[-1])).records
    if round not in snapshots:
        return _stored(run, round, pairs, records)
    env, step = (records.ids[name].cpu().numpy() for name in ("env", "step"))
    rows = torch.from_numpy(_rows_of(run, round, env, step, pairs))
    valid = records.valid_rows[rows]
    return take_rows(records.obs, rows[valid]), take_rows(records.actions, rows[valid]), valid.tolist()


def _stored(
    run: Run, round: int, pairs: Sequence[tuple[int, int, int]], like: Records
) -> tuple[Rows, Rows, list[bool]]:
    """The same from the table of records. like: records of another round, whose shapes and types they get."""
    table = run.records(round)
    where = _rows_of(run, round, table["env"].to_numpy(), table["step"].to_numpy(), pairs)
    table = table.take(where)
    valid = [bool(one) for one in table["valid"].to_pylist()]
    shaped: list[Tensor] = []
    for name, column in (("obs", like.obs), ("action", like.actions)):
        values = table[name].to_pylist() if name in table.column_names else [None]
        if not isinstance(column, Tensor) or any(value is None for value in values):
            raise RollsightError(
                f"round {round} of {run.path} has no snapshot and its table does not hold every record's {name}: "
                f"choose records of a round with a snapshot, such as {run.snapshot_rounds[-1]}"
            )
        numbers = torch.tensor(values).reshape(len(values), *column.shape[1:]).to(column.dtype)
        shaped.append(numbers[torch.tensor(valid)])
    return shaped[0], shaped[1], valid


def _rows_of(run: Run, round: int, env: Ints, step: Ints, pairs: Sequence[tuple[int, int, int]]) -> Ints:
    place = {pair: row for row, pair in enumerate(zip(env.tolist(), step.tolist(), strict=True))}
    if unknown := next((one for one in pairs if one[1:] not in place), None):
        raise RollsightError(
            f"{run.path} has no record {':'.join(map(str, unknown))}: in round {round} env goes from {env.min()} to "
            f"{env.max()}, step from {step.min()} to {step.max()}"
        )
    return np.array([place[one[1:]] for one in pairs], np.int64)
