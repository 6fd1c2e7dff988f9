"""What a data-parallel trainer needs around `score_records(..., group=)`: one selection and the same number of steps
on every rank. Every rank of the group must make each of these calls."""

from __future__ import annotations

import torch
import torch.distributed as dist

from rollsight.scoring.parallel import Group, gathered_scores
from rollsight.scoring.scores import Scores
from rollsight.selection import Rule, Selection


def select_across(rule: Rule, scores: Scores, group: Group) -> Selection:
    """The rule over all ranks' scores; the weights and dropped indices of this rank's records.

    `requested`, `reached`, `message` and `min_keep` are of the whole. A unit's number (`group`, `episode`) is one unit
    wherever it appears: give numbers that differ between ranks, unless a unit is spread over them.
    """
    whole, own = gathered_scores(scores, group)
    selection = rule(whole)
    mine = (selection.dropped >= own.start) & (selection.dropped < own.stop)
    return Selection(
        selection.weights[own].to(scores.values.device),
        (selection.dropped[mine] - own.start).to(scores.values.device),
        selection.requested,
        selection.reached,
        selection.message,
    )


def most_steps(steps: int, group: Group) -> int:
    """The largest number of optimiser steps that any rank has, which every rank must take: one that runs out of records
    (a selection may drop all of them) takes the rest with a loss of 0 over what it has, or the others wait for ever."""
    backend = dist.get_backend(group)
    count = torch.tensor(steps, device="cuda" if backend == "nccl" else "cpu")
    dist.all_reduce(count, dist.ReduceOp.MAX, group=group)
    return int(count)
