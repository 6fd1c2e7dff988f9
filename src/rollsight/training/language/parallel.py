"""One round on several processes: each computes its share, all hold the whole, so every one takes the same steps.

One process is the case without `torch.distributed`; nothing then is communicated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


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
    """The sum of the values over the processes."""
    if size() > 1:
        dist.all_reduce(values)
    return values
