"""Records and directions of several processes (`torch.distributed`): each rank holds its own records of one buffer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from rollsight.errors import RollsightError
from rollsight.objectives import Objective
from rollsight.records import Records
from rollsight.scoring.gradients import Direction
from rollsight.scoring.scores import Scores

Group: TypeAlias = "dist.ProcessGroup"  # a string: torch can be built without it


class FailedElsewhere(RollsightError):
    """Another rank failed in what all ranks of a group do together."""


_COLUMNS = ("log_probs", "advantages", "returns", "values", "rewards", "valid")


@contextmanager
def together(group: Group | None) -> Iterator[None]:
    """What every rank of `group` does, with the same collectives of this file on each: where it fails on one rank it
    fails on all of them (`FailedElsewhere`), and none is left waiting for the one that failed. None: one process."""
    try:
        yield
        if group is not None:
            _exchanged(None, group)
    except FailedElsewhere:
        raise
    except Exception as error:
        if group is not None:
            _exchanged(None, group, f"{type(error).__name__}: {error}")
        raise


def _exchanged(mine: Any, group: Group, failure: str = "") -> list[Any]:
    """What every rank gives here, in the order of ranks. failure: why this rank goes no further, empty where it does;
    all the others then raise `FailedElsewhere`."""
    ranks: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(ranks, (failure, mine), group=group)
    if not failure and (failed := [f"rank {rank}: {text}" for rank, (text, _) in enumerate(ranks) if text]):
        raise FailedElsewhere("; ".join(failed))
    return [given for _, given in ranks]


def prepared_across(objective: Objective, records: Records, group: Group) -> tuple[Records, int]:
    """`objective.prepare` as over all ranks' records, this rank's part of it; and how many valid tokens all have."""
    whole, own = _gathered(records, group)
    prepared = objective.prepare(whole)
    return _with_part(records, prepared, own), int(prepared.valid.sum())


def measured_across(target: Any, records: Records, group: Group) -> tuple[Records, int]:
    """`target.measured_on` as over all ranks' records, this rank's part of it; and the count of all ranks.

    A target with records of its own has its rank's part of them, if it is a dataclass; any other (`targets.Action`) has
    the same at every rank.
    """
    if target.records is None:
        whole, own = _gathered(records, group)
        measured: Records = target.measured_on(whole)
        return _with_part(records, measured, own), target.count(measured)
    divided = is_dataclass(target)
    if not divided:
        measured = target.measured_on(records)
        return measured, target.count(measured) * dist.get_world_size(group)
    source = target.records.take(target.records.valid_rows.nonzero().flatten())
    whole, own = _gathered(source, group)
    measured = replace(target, records=whole).measured_on(whole)
    return _with_part(source, measured, own), target.count(measured)


def all_reduced(directions: list[Direction], group: Group) -> list[Direction]:
    """The directions summed over ranks, in one all-reduce."""
    _exchanged(None, group)
    flat = torch.cat([g.reshape(-1) for direction in directions for g in direction.values()])
    dist.all_reduce(flat, group=group)
    parts = iter(flat.split([g.numel() for direction in directions for g in direction.values()]))
    return [{name: next(parts).view_as(g) for name, g in direction.items()} for direction in directions]


def gathered_scores(scores: Scores, group: Group) -> tuple[Scores, slice]:
    """All ranks' scores, in the order of ranks, and where this rank's are; without the tokens' own."""
    columns: dict[str, Any] = {"values": scores.values.cpu(), "valid": scores.valid.cpu()}
    columns |= {f"ids.{name}": column.cpu() for name, column in scores.ids.items()}
    ranks, own = _all(columns, len(scores), group)
    ids = {name: torch.cat([rank[f"ids.{name}"] for rank in ranks]) for name in scores.ids}
    whole = replace(
        scores,
        values=torch.cat([rank["values"] for rank in ranks]),
        valid=torch.cat([rank["valid"] for rank in ranks]),
        ids=ids,
        tokens=None,
    )
    return whole, own


def _gathered(records: Records, group: Group) -> tuple[Records, slice]:
    """All ranks' columns in the order of ranks, observations and actions apart, and where this rank's are."""
    columns: dict[str, Any] = {name: getattr(records, name) for name in _COLUMNS}
    columns |= {f"ids.{name}": column for name, column in records.ids.items()}
    here = {name: column.cpu() for name, column in columns.items() if column is not None}
    ranks, own = _all(here, len(records), group)
    total = sum(len(rank["log_probs"]) for rank in ranks)
    if total == 0:
        raise RollsightError(f"None of the records of {len(ranks)} ranks is valid; score at least one valid record.")
    whole = {name: _stacked([rank[name] for rank in ranks]) for name in here if all(name in rank for rank in ranks)}
    ids = {name.removeprefix("ids."): whole.pop(name) for name in list(whole) if name.startswith("ids.")}
    return Records(torch.zeros(total), torch.zeros(total), ids=ids, **whole), own


def _stacked(columns: list[Tensor]) -> Tensor:
    """Columns (n_r,) or (n_r, T_r), padded to the longest T; the padding's `valid` is False."""
    longest = max(column.shape[-1] for column in columns)
    return torch.cat([c if c.dim() == 1 else F.pad(c, (0, longest - c.shape[1])) for c in columns])


def _all(columns: dict[str, Any], n: int, group: Group) -> tuple[list[dict[str, Any]], slice]:
    ranks = _exchanged((n, columns), group)
    start = sum(size for size, _ in ranks[: dist.get_rank(group)])
    return [part for _, part in ranks], slice(start, start + n)


def _with_part(records: Records, whole: Records, own: slice) -> Records:
    """The records with this rank's part of the whole's advantages."""
    part = whole.advantages[own]
    if part.dim() == 2:
        part = part[:, : records.log_probs.shape[1]]
    return records.with_advantages(part.to(records.advantages.device))
