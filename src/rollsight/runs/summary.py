"""The numbers of one round: what goes to the host's logger as `influence/*` and into the run folder's `rounds`
table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rollsight.records import Records
from rollsight.scoring import Scores, TrustLine
from rollsight.selection import Selection

Summary = dict[str, Any]

# Names of the summary that the host's logger shows; the run folder keeps all of them.
LOGGED = (
    "kept_frac",
    "neg_frac",
    "neg_mass",
    "score_min",
    "score_p01",
    "score_median",
    "score_p99",
    "top1pct_share",
    "target_grad_norm",
    "invalid_rows",
    "trust_split_half",
    "trust_split_half_permuted",
    "trust_gradient_ratio",
    "update_norm",
    "approx_kl",
    "optimizer_steps",
    "time_score",
    "time_trust",
    "time_write",
    "time_collect",
    "time_train",
    "overhead_s",
)


class Clock:
    """Names the time since the lap before. now: the clock that is read."""

    def __init__(self, started: float, now: Callable[[], float] = time.perf_counter) -> None:
        self.laps: dict[str, float] = {}
        self._last, self._now = started, now

    def lap(self, name: str) -> None:
        now = self._now()
        self.laps[name] = now - self._last
        self._last = now

    def measured(self, laps: Mapping[str, float]) -> None:
        """What the time since the lap before went to, by who spent it."""
        self.laps |= laps
        self._last = self._now()


def of_records(records: Records) -> Summary:
    """What the records are, over the valid ones; None is what they do not say."""
    valid = records.valid.numpy(force=True)
    count = int(records.valid_rows.sum())
    advantages = records.advantages.numpy(force=True).astype(np.float64)[valid]
    return {
        "records": len(records),
        "valid": count,
        "invalid_rows": len(records) - count,
        "explained_variance": explained_variance(records.values, records.returns, valid),
        "advantage_mean": float(advantages.mean()) if len(advantages) else None,
        "advantage_std": float(advantages.std()) if len(advantages) else None,
    }


def explained_variance(values: Tensor | None, returns: Tensor | None, valid: Any) -> float | None:
    """1 - var(returns - values) / var(returns) over the valid entries; None where the returns are all the same."""
    if values is None or returns is None:
        return None
    value, of = (column.numpy(force=True).astype(np.float64)[valid] for column in (values, returns))
    return float(1 - (of - value).var() / spread) if len(of) and (spread := of.var()) else None


def mean_of(column: Any, valid: Any) -> float | None:
    """The mean of a column (N,) over its valid rows (N,)."""
    values = np.asarray(column, np.float64)[valid]
    return float(values.mean()) if len(values) else None


def of_speed(summary: Summary) -> Summary:
    """Records in each second that the round took, its evaluation apart."""
    times = [value for name, value in summary.items() if name.startswith("time_") and name != "time_eval"]
    return {"records_per_second": summary["records"] / sum(times) if sum(times) > 0 else None}


def of_scoring(
    valid: Tensor, scores: Scores | None, selection: Selection | None, line: TrustLine | None, semantic: str
) -> Summary:
    """What was made of the records before their update. valid: (N,) booleans; scores: those that decide the selection;
    None is what there was not."""
    return {
        "scored": False,
        **(of_scores(scores) if scores is not None else {}),
        **of_selection(selection, max(int(valid.sum()), 1), semantic),
        **(of_trust(line) if line is not None else {}),
    }


def of_scores(scores: Scores) -> Summary:
    """Distribution of one round's scores over its valid records."""
    return {
        "scored": True,
        "target": scores.target,
        "normalisation": scores.normalisation,
        "backend": scores.backend,
        **distribution(scores.values[scores.valid]),
    }


def distribution(values: Tensor) -> Summary:
    """Of scores (n,); all None where there are none."""
    names = ("neg_frac", "neg_mass", "score_min", "score_p01", "score_median", "score_p99", "score_max")
    if not len(values):
        return dict.fromkeys((*names, "top1pct_share"))
    values = values.double()
    size = values.abs()
    total = float(size.sum())
    quantiles = torch.quantile(
        values, torch.tensor([0.0, 0.01, 0.5, 0.99, 1.0], dtype=torch.float64, device=values.device)
    ).tolist()
    top = size.sort(descending=True).values[: max(1, len(size) // 100)]
    negative = float((values < 0).double().mean()), float(size[values < 0].sum()) / total if total else 0.0
    return {
        **dict(zip(names, (*negative, *quantiles), strict=True)),
        "top1pct_share": float(top.sum()) / total if total else 0.0,
    }


def of_selection(selection: Selection | None, valid: int, semantic: str) -> Summary:
    """What the selection did; everything kept where there was none."""
    dropped = 0 if selection is None else len(selection.dropped)
    return {
        "semantic": semantic,
        "units_requested": 0 if selection is None else selection.requested,
        "units_dropped": 0 if selection is None else selection.reached,
        "dropped": dropped,
        "kept_frac": 1 - dropped / valid,
        "message": None if selection is None else selection.message or None,
    }


def of_trust(line: TrustLine) -> Summary:
    """The trust line."""
    return {
        "trust_split_half": line.split_half,
        "trust_split_half_permuted": line.split_half_permuted,
        "trust_gradient_ratio": line.gradient_ratio,
        "target_grad_norm": line.target_gradient_norm,
    }
