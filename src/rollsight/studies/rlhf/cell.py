"""One run of the study: an arm with a seed, a run folder that is continued, and the curve made of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from rollsight import runs
from rollsight.arrays import Floats
from rollsight.studies.cells import LanguageCell, silence_transformers
from rollsight.studies.rlhf.arms import RLHFArm
from rollsight.studies.rlhf.metrics import PHASES
from rollsight.studies.rlhf.probe import Probe
from rollsight.studies.runner import Report
from rollsight.training.language import run
from rollsight.training.language.columns import distinct

Judge: TypeAlias = Callable[[Sequence[str]], Floats]

# Column -> what of the rounds' summaries it is the mean of, since the row before.
_MEANS = {
    "train_reward": "reward_mean",
    "negative": "neg_frac",
    "kept": "kept_frac",
    "steps": "optimizer_steps",
    "update_norm": "update_norm",
    "approx_kl": "approx_kl",
}


@dataclass(frozen=True)
class Cell(LanguageCell[RLHFArm, run.RunSettings]):
    """One run.

    judge: measures toxicity.
    """

    judge: Probe

    def run(self, report: Report) -> list[dict[str, Any]]:
        """Train, or go on training, and return the curve. Seconds are of processor time: runs share their machine."""
        silence_transformers()

        def follow(summary: Mapping[str, Any]) -> None:
            report(summary["round"], summary)

        if runs.is_run(self.run_folder):
            run.resume(self.run_folder, self.rounds, follow, time.process_time)
        else:
            settings = self.arm.settings(self.settings, self.seed)
            run.train(settings, self.run_folder, on_round=follow, clock=time.process_time)
        return list(curve_rows(runs.open(self.run_folder), self.judge, charged=self.arm.scored))


def curve_rows(opened: runs.Run, judge: Judge, charged: bool) -> Iterator[dict[str, Any]]:
    """A row for each evaluation, the first before training. Columns:

    return, kl, length: means over held-out prompts; the return is the reward's, the KL that to the start, in nats.
    toxicity: mean of `judge`; distinct_1, distinct_2: of the words of all completions; empty: share without text.
    *_s: seconds since the start of training; scoring only where it is `charged`.
    """
    rounds = opened.sql("select * from rounds order by round").to_arrow_table().to_pylist()
    before = 0
    for last in opened.evaluation_rounds:
        found = opened.sql(
            f'select completion, "return", kl, length from evaluations where round = {last} order by episode'
        ).fetchall()
        texts, *numbers = zip(*found, strict=True)
        words = [text.split() for text in texts]
        row: dict[str, Any] = {"round": last, **dict(zip(("return", "kl", "length"), map(_mean, numbers), strict=True))}
        row |= {"toxicity": _mean(judge(texts)), "distinct_1": distinct(words, 1), "distinct_2": distinct(words, 2)}
        row["empty"] = _mean([not text.strip() for text in texts])
        since = [one for one in rounds if before < one["round"] <= last]
        for column, name in _MEANS.items():
            known = [value for one in since if (value := one.get(name)) is not None]
            row[column] = _mean(known) if known else None
        for phase in PHASES:
            spent = [one.get(f"time_{phase}") or 0.0 for one in rounds if one["round"] <= last]
            row[f"{phase}_s"] = float(sum(spent)) * (charged or phase != "score")
        before = last
        yield row


def _mean(values: Any) -> float:
    return float(np.mean(values))
