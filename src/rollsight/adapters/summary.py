"""The numbers of one round: what goes to the host's logger as `influence/*` and into the run folder's `rounds`
table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

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


def of_rollout(
    valid: Tensor,
    returns: Any,
    scores: Scores | None,
    selection: Selection | None,
    line: TrustLine | None,
    semantic: str,
) -> Summary:
    """What is known of a round before its update. valid: (N,) booleans; returns: (E,) of the episodes that ended;
    scores: those that decide the selection; None is what there was not."""
    count = int(valid.sum())
    return {
        "records": len(valid),
        "valid": count,
        "invalid_rows": len(valid) - count,
        "scored": False,
        "episodes": len(returns),
        "return_mean": float(returns.mean()) if len(returns) else None,
        **(of_scores(scores) if scores is not None else {}),
        **of_selection(selection, max(count, 1), semantic),
        **(of_trust(line) if line is not None else {}),
    }


def of_scores(scores: Scores) -> Summary:
    """Distribution of one round's scores over its valid records."""
    values = scores.values[scores.valid].double()
    size = values.abs()
    total = float(size.sum())
    quantiles = torch.quantile(
        values, torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64, device=values.device)
    ).tolist()
    top = size.sort(descending=True).values[: max(1, len(size) // 100)]
    return {
        "scored": True,
        "target": scores.target,
        "normalisation": scores.normalisation,
        "backend": scores.backend,
        "neg_frac": float((values < 0).double().mean()),
        "neg_mass": float(size[values < 0].sum()) / total if total else 0.0,
        "score_min": float(values.min()),
        "score_p01": quantiles[0],
        "score_median": quantiles[1],
        "score_p99": quantiles[2],
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
    }


def of_trust(line: TrustLine) -> Summary:
    """The trust line."""
    return {
        "trust_split_half": line.split_half,
        "trust_split_half_permuted": line.split_half_permuted,
        "trust_gradient_ratio": line.gradient_ratio,
        "target_grad_norm": line.target_gradient_norm,
    }
