"""What one call of `score_records` computes: the records, and what they are scored for."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch.distributed as dist
from torch import Tensor

from rollsight.distributed import Group, gathered_records
from rollsight.errors import RollsightError
from rollsight.objectives import Objective
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.targets import Target


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """The records to be scored, the objective whose terms they have, and the target that is explained.

    policy:       evaluates records.
    target:       what is explained.
    objective:    what is trained on.
    prepared:     the n records, each with a valid token, with the advantages that the objective uses.
    measured:     the records that the target is measured on.
    same_records: whether those are the n records too.
    count:        what the sum of the target's terms is divided by, at least 1; of all processes.
    tokens:       how many valid entries (tokens of sequences) the records of all processes have.
    chunk_size:   how many records are evaluated at once.
    group:        the processes that each hold their own records of one buffer; None for one process.
    """

    policy: Policy
    target: Target
    objective: Objective
    prepared: Records
    measured: Records
    same_records: bool
    count: int
    tokens: int
    chunk_size: int
    group: Group | None = None

    @classmethod
    def local(
        cls, policy: Policy, records: Records, target: Target, objective: Objective, *, chunk_size: int
    ) -> Problem:
        """Of one process that holds all records, each of them valid."""
        prepared, measured = objective.prepare(records), target.measured_on(records)
        same = measured.obs is records.obs
        measured = measured if same else only_valid(measured)
        return cls(
            policy=policy,
            target=target,
            objective=objective,
            prepared=prepared,
            measured=measured,
            same_records=same,
            count=max(target.count(measured), 1),
            tokens=int(prepared.valid.sum()),
            chunk_size=chunk_size,
        )

    @classmethod
    def across(
        cls, group: Group, policy: Policy, records: Records, target: Target, objective: Objective, *, chunk_size: int
    ) -> Problem:
        """Of a group of processes, each of which makes this call with its own records (it may have none)."""
        prepared, tokens = _prepared_across(objective, records, group)
        measured, count = _measured_across(target, records, group)
        return cls(
            policy=policy,
            target=target,
            objective=objective,
            prepared=prepared,
            measured=measured,
            same_records=measured.obs is records.obs,
            count=max(count, 1),
            tokens=tokens,
            chunk_size=chunk_size,
            group=group,
        )

    def target_value(self, evaluation: Evaluation) -> Tensor:
        """The target, from an evaluation of the measured records."""
        return self.target.terms(evaluation, self.measured).sum() / self.count

    def objective_terms(self, evaluation: Evaluation) -> Tensor:
        """(n,) or (n, T): each record's own term, from an evaluation of the prepared records."""
        return self.objective.terms(evaluation, self.prepared)

    def take(self, rows: slice) -> Problem:
        """These records' part of it, where the target is measured on the same ones."""
        return replace(self, measured=self.measured.take(rows), prepared=self.prepared.take(rows))


def _prepared_across(objective: Objective, records: Records, group: Group) -> tuple[Records, int]:
    """`objective.prepare` as over all ranks' records, this rank's part of it; and how many valid tokens all have."""
    whole, own = gathered_records(records, group)
    prepared = objective.prepare(whole)
    return _with_part(records, prepared, own), int(prepared.valid.sum())


def _measured_across(target: Any, records: Records, group: Group) -> tuple[Records, int]:
    """`target.measured_on` as over all ranks' records, this rank's part of it; and the count of all ranks.

    A target with records of its own has its rank's part of them, if it is a dataclass; any other (`targets.Action`) has
    the same at every rank.
    """
    if target.records is None:
        whole, own = gathered_records(records, group)
        measured: Records = target.measured_on(whole)
        return _with_part(records, measured, own), target.count(measured)
    divided = is_dataclass(target)
    if not divided:
        measured = target.measured_on(records)
        return measured, target.count(measured) * dist.get_world_size(group)
    source = target.records.take(target.records.valid_rows.nonzero().flatten())
    whole, own = gathered_records(source, group)
    measured = replace(target, records=whole).measured_on(whole)
    return _with_part(source, measured, own), target.count(measured)


def _with_part(records: Records, whole: Records, own: slice) -> Records:
    """The records with this rank's part of the whole's advantages."""
    part = whole.advantages[own]
    if part.dim() == 2:
        part = part[:, : records.log_probs.shape[1]]
    return records.with_advantages(part.to(records.advantages.device))


def only_valid(records: Records) -> Records:
    """The records with a valid token; the same object where that is all of them."""
    valid = records.valid_rows
    if bool(valid.all()):
        return records
    if not bool(valid.any()):
        raise RollsightError(
            f"None of the {len(records)} records is valid; score a buffer with at least one valid record."
        )
    return records.take(valid.nonzero().flatten())


def default_chunk_size(records: Records) -> int:
    """Rows evaluated at once: 4096, fewer where observations are large (images); of sequences about 1024 tokens,
    prompts included."""
    entries = [records.obs] if isinstance(records.obs, Tensor) else list(records.obs.values())
    numbers = sum(entry[0].numel() for entry in entries)
    rows = 4096
    if records.log_probs.dim() == 2:
        words = [entry.shape[1] for entry in entries if entry.dim() == 2 and not entry.is_floating_point()]
        rows = 1024 // max(records.log_probs.shape[1], *words, 1)
    return max(1, min(rows, 2**23 // max(numbers, 1)))
