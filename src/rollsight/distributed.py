"""Several processes (`torch.distributed`), each with its own records of one buffer: one set of scores, one selection,
as many optimiser steps on each. Every process of a group must make each call that takes the `group`.

The functions without `group` are of all processes, and of this one alone where `torch.distributed` is not initialised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rollsight.errors import RollsightError
from rollsight.records import Records

if TYPE_CHECKING:  # scoring imports this file
    from rollsight.scoring.gradients import Direction
    from rollsight.scoring.scores import Scores
    from rollsight.selection import Rule, Selection

T = TypeVar("T")
Group: TypeAlias = "dist.ProcessGroup"  # a string: torch can be built without it


class FailedElsewhere(RollsightError):
    """Another rank failed in what all ranks of a group do together."""


_COLUMNS = ("log_probs", "advantages", "returns", "values", "rewards", "valid")


@contextmanager
def together(group: Group | None) -> Iterator[None]:
    """What every rank of `group` does, with the same calls of this file on each: where it fails on one rank it
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


def from_first(call: Callable[[], T], group: Group | None) -> T:
    """What the call gives on the first rank, on every rank; only that one makes it. None: one process."""
    if group is None:
        return call()
    first: T = _exchanged(call() if dist.get_rank(group) == 0 else None, group)[0]
    return first


def everywhere(holds: bool, group: Group | None) -> bool:
    """Whether it holds on every rank. None: one process."""
    return holds if group is None else all(_exchanged(holds, group))


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


def gathered_records(records: Records, group: Group) -> tuple[Records, slice]:
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


def select_across(rule: Rule, scores: Scores, group: Group) -> Selection:
    """The rule over all ranks' scores; the weights and dropped indices of this rank's records.

    `requested`, `reached`, `message` and `min_keep` are of the whole. A unit's number (`group`, `episode`) is one unit
    wherever it appears: give numbers that differ between ranks, unless a unit is spread over them.
    """
    whole, own = gathered_scores(scores, group)
    selection = from_first(lambda: rule(whole), group)  # a rule may draw random numbers
    mine = (selection.dropped >= own.start) & (selection.dropped < own.stop)
    device = scores.values.device
    return replace(
        selection,
        weights=selection.weights[own].to(device),
        dropped=(selection.dropped[mine] - own.start).to(device),
    )


def most_steps(steps: int, group: Group) -> int:
    """The largest number of optimiser steps that any rank has, which every rank must take: one that runs out of records
    (a selection may drop all of them) takes the rest with a loss of 0 over what it has, or the others wait for ever."""
    backend = dist.get_backend(group)
    count = torch.tensor(steps, device="cuda" if backend == "nccl" else "cpu")
    dist.all_reduce(count, dist.ReduceOp.MAX, group=group)
    return int(count)


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def everyone() -> Group | None:
    """The group of all processes; None where there is one."""
    return dist.group.WORLD if size() > 1 else None


def spread(count: int, compute: Callable[[int], T]) -> list[T]:
    """`[compute(0), ..., compute(count - 1)]` on every process, each of them computing every size-th entry."""
    mine = [compute(i) for i in range(rank(), count, size())]
    if size() == 1:
        return mine
    shares: list[list[T]] = [mine] * size()
    dist.all_gather_object(shares, mine)
    return [shares[i % size()][i // size()] for i in range(count)]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up every process's gradients; a process without one counts as zero."""
    if size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


def total(values: Tensor) -> Tensor:
    """The sum of the values over the processes, in place."""
    if size() > 1:
        dist.all_reduce(values)
    return values
