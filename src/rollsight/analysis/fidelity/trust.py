"""The trust line over training: how far each round's scores can be believed before anything is retrained.

See docs/definitions.md, The in-sample trap and the trust line: the share of the scores that is the records' own
contribution to the target, the split-half rank correlation and the same under permuted advantages, how much the
selection lengthened the mean gradient, and what the update did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rollsight.analysis.fidelity.variants import self_slopes, squared_gradient_norms
from rollsight.runs import Run
from rollsight.scoring import score_records
from rollsight.snapshot import Snapshot
from rollsight.streams import Purpose, stream
from rollsight.targets import Target

_SNAPSHOTS = 12  # spread over the run, because each is loaded and scored
_RECORDS = 512  # of a snapshot whose own contributions are computed


@dataclass(frozen=True)
class TrustRound:
    """One round's trust line; None where the run does not hold a figure. All but `self_share` are columns of the run's
    rounds, measured while it was trained.

    round: number of the round.
    self_share: sum |own contribution| / sum |score|, over a random part of the records of a round with a snapshot.
    split_half: rank correlation of the scores against two halves of the buffer.
    split_half_permuted: the same with permuted advantages.
    gradient_ratio: norm of the mean gradient after the selection, over before.
    update_norm: length of the parameter change.
    approx_kl: approximate KL divergence of the update, in nats.
    optimizer_steps: optimiser steps of the round.
    """

    round: int
    self_share: float | None
    split_half: float | None
    split_half_permuted: float | None
    gradient_ratio: float | None
    update_norm: float | None
    approx_kl: float | None
    optimizer_steps: int | None


def trust_over_training(run: Run, target: Target) -> list[TrustRound]:
    """The trust line of the run's rounds, ascending, for a target measured on each round's own records."""
    relation = run.sql("select * from rounds order by round")
    rounds = [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
    stored = run.snapshot_rounds
    chosen = {stored[i] for i in np.linspace(0, len(stored) - 1, min(_SNAPSHOTS, len(stored))).round().astype(int)}
    shares = {number: self_share(Snapshot.load(run.snapshot_path(number)), target) for number in sorted(chosen)}
    return [_line(row, shares.get(row["round"])) for row in rounds]


def shown(lines: Sequence[TrustRound]) -> list[TrustRound]:
    """Those with a snapshot; about a dozen of all where none has one."""
    known = [line for line in lines if line.self_share is not None]
    return known or list(lines[:: max(1, len(lines) // _SNAPSHOTS)])


def self_share(snapshot: Snapshot, target: Target) -> float:
    """sum |own contribution| / sum |score| over at most 512 of the round's valid records."""
    policy, records, objective = snapshot.policy, snapshot.records, snapshot.rule.policy_term()
    scores = score_records(policy, records, target, objective).values
    slopes = self_slopes(policy, records, target, objective)
    valid = records.valid_rows.nonzero().flatten()
    order = stream(snapshot.round, Purpose.SELF_SHARE_SAMPLE).permutation(len(valid))[:_RECORDS]
    rows = valid[torch.from_numpy(order).to(valid.device)]
    own = slopes[rows] * squared_gradient_norms(policy, records.take(rows))
    total = float(scores[rows].abs().sum())
    return float(own.abs().sum()) / total if total else float("nan")


def _line(row: dict[str, Any], share: float | None) -> TrustRound:
    steps = row.get("optimizer_steps")
    return TrustRound(
        int(row["round"]),
        share,
        row.get("trust_split_half"),
        row.get("trust_split_half_permuted"),
        row.get("trust_gradient_ratio"),
        row.get("update_norm"),
        row.get("approx_kl"),
        None if steps is None else int(steps),
    )
