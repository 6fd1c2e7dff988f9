"""The frozen rounds of a run, to be scored and replayed: snapshots of control runs, and what rounds of language models
share with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from rollsight.errors import RollsightError
from rollsight.policy import Policy
from rollsight.records import Records, Rows
from rollsight.runs import Run, is_language
from rollsight.scoring import score_records
from rollsight.snapshot import Snapshot
from rollsight.streams import Purpose, stream
from rollsight.targets import Action

if TYPE_CHECKING:
    from rollsight.analysis.culprits.behaviour import Behaviour


class FrozenRound(Protocol):
    """One round at the start of its update."""

    @property
    def number(self) -> int:
        """Of the round."""
        ...

    @property
    def records(self) -> Records:
        """The buffer."""
        ...

    @property
    def weights(self) -> Tensor:
        """(N,) what each record weighed in the update; 0 where it was dropped or invalid."""
        ...

    def before(self) -> Policy:
        """The policy at the start of the update, to be read before the next call."""
        ...

    def after(self, weights: Tensor | None) -> Policy:
        """The policy after an update with these weights (N,), or with its own; to be read before the next call."""
        ...

    def scores(self, behaviours: Sequence[Any]) -> list[Tensor]:
        """(N,) scores of the records for each behaviour, which are all of the kind that belongs to the run."""
        ...


class FrozenRounds(Protocol):
    """The rounds of a run that can be scored and replayed."""

    @property
    def numbers(self) -> list[int]:
        """Of the rounds, ascending."""
        ...

    def open(self, number: int) -> FrozenRound:
        """Load one."""
        ...


@dataclass(frozen=True)
class SnapshotRounds:
    """Those of a run with snapshots.

    run: the run.
    """

    run: Run

    @property
    def numbers(self) -> list[int]:
        """The rounds with a snapshot, ascending."""
        return self.run.snapshot_rounds

    def open(self, number: int) -> SnapshotRound:
        """Load its snapshot."""
        return SnapshotRound(Snapshot.load(self.run.snapshot_path(number)))


@dataclass(frozen=True)
class SnapshotRound:
    """A round of a snapshot.

    snapshot: of the round.
    """

    snapshot: Snapshot

    @property
    def number(self) -> int:
        """Of the round."""
        return self.snapshot.round

    @property
    def records(self) -> Records:
        """The buffer."""
        return self.snapshot.records

    @cached_property
    def weights(self) -> Tensor:
        """(N,) what each record weighed in the update."""
        valid = self.records.valid_rows.to(torch.float32)
        return valid if self.snapshot.weights is None else valid * self.snapshot.weights.to(valid)

    def before(self) -> Policy:
        """The policy at the start of the update."""
        return self.snapshot.policy

    def after(self, weights: Tensor | None) -> Policy:
        """The policy after a replay."""
        return self.snapshot.replay("repack", weights).policy

    def scores(self, behaviours: Sequence[Behaviour]) -> list[Tensor]:
        """(N,) scores for each behaviour, all in one pass."""
        pairs = [len(one.places) for one in behaviours]
        groups = torch.repeat_interleave(torch.arange(len(behaviours)), torch.tensor(pairs))
        obs, actions = ([getattr(one, name) for one in behaviours] for name in ("obs", "actions"))
        target = Action(joined(obs), joined(actions), each=True, groups=groups)
        snapshot = self.snapshot
        values = score_records(snapshot.policy, snapshot.records, target, snapshot.rule.policy_term()).values.detach()
        return list(values.unbind(1))


def check_has_rounds(run: Run) -> None:
    """`RollsightError` where no round of the run can be scored again; the sentence says what to do."""
    if is_language(run.metadata):
        if not run.policy_rounds:
            raise RollsightError(
                f"{run.path} has no frozen rounds, which the scores need: train with rollsight rlhf --snapshots all, "
                "or attach(trainer, run=..., snapshots='all')"
            )
    elif not run.snapshot_rounds:
        raise RollsightError(
            f"{run.path} has no snapshots, which the scores need: train with --snapshots all (SB3: snapshots='all')"
        )


def drawn(count: int, most: int) -> list[int]:
    """At most so many of the places from 0 to count, in order: a behaviour's, of those that show it."""
    if count <= most:
        return list(range(count))
    return sorted(stream(0, Purpose.BEHAVIOUR_PAIRS, count, most).permutation(count)[:most].tolist())


def key_of(run: Run, *what: Any) -> str:
    """The key of a behaviour of the run that is made of these plain values."""
    return hashlib.sha256(json.dumps([run.metadata.get("created"), *what], default=str).encode()).hexdigest()[:16]


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several columns, one after the other."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    return {name: torch.cat([part[name] for part in parts if not isinstance(part, Tensor)]) for name in first}
