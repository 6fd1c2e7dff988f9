"""One run of the study: an arm on an environment with a seed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from rollsight.errors import Diverged
from rollsight.studies.ppo_arms import PPOArm
from rollsight.studies.runner import Report
from rollsight.studies.store import Columns, Key
from rollsight.training.paper import settings_for

# Column -> what of the rounds' summaries it is the mean of, since the row before.
_MEANS = {
    "train_return": "return_mean",
    "kept": "kept_frac",
    "steps": "optimizer_steps",
    "update_norm": "update_norm",
    "kl": "approx_kl",
    "gradient_ratio": "trust_gradient_ratio",
    "split_half": "trust_split_half",
    "split_half_permuted": "trust_split_half_permuted",
}
# Column -> seconds of processor time since the start of training.
_SECONDS = {"collect_s": "time_collect", "score_s": "time_score", "train_s": "time_train", "evaluate_s": "time_eval"}


@dataclass(frozen=True)
class Evaluations:
    """When the policy is evaluated.

    episodes: of the stochastic policy in each evaluation; more make curves less noisy.
    every: rounds from one evaluation to the next.
    """

    episodes: int
    every: int


@dataclass(frozen=True)
class Cell:
    """One run.

    env: name of the environment.
    arm: how it trains.
    seed: of every random stream.
    rounds: of training.
    evaluations: when the policy is evaluated.
    """

    env: str
    arm: PPOArm
    seed: int
    rounds: int
    evaluations: Evaluations

    @property
    def name(self) -> str:
        return f"{self.env} {self.arm} {self.seed}"

    @property
    def key(self) -> Key:
        return self.env, str(self.arm), self.seed

    def done(self, columns: Columns) -> bool:
        """A run is stored at its end only."""
        return True

    def run(self, report: Report) -> list[dict[str, Any]]:
        """Train, and return the learning curve: a row for each evaluated round.

        A run that diverges counts, from there to its end, with its lowest return: leaving it out would favour the arm.
        """
        from rollsight.studies.trainer import trainer_of
        from rollsight.training.compiled import environments
        from rollsight.training.compiled.trainer import Plan

        arm, env = self.arm.resolved(settings_for(self.env)), self.env
        episodes, every = self.evaluations.episodes, self.evaluations.every
        plan = Plan(
            arm.training(self.seed),
            evaluation=partial(environments.make, env),
            episodes=episodes,
            evaluate_every=every,
            clock=time.process_time,  # the runs of a study share their machine
        )
        rows, pending = list[dict[str, Any]](), list[Mapping[str, Any]]()
        seconds = dict.fromkeys(_SECONDS, 0.0)

        def follow(summary: Mapping[str, Any]) -> None:
            pending.append(summary)
            for column, name in _SECONDS.items():
                charged = name != "time_score" or arm.kind not in ("random", "matched-steps")
                seconds[column] += summary.get(name, 0.0) * charged
            if "evaluation_return" in summary:
                rows.append(_row(summary, pending, seconds))
                pending.clear()
            if summary["round"]:
                report(summary["round"], summary)

        try:
            with trainer_of(env, arm, self.seed, self.rounds, plan) as trainer:
                trainer.train(self.rounds, follow)
        except Diverged:
            rows.extend(lost_rows(rows, range(rows[-1]["round"] + every, self.rounds + 1, every)))
        return rows


def lost_rows(rows: Sequence[Mapping[str, Any]], rounds: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Rows for the evaluations that a diverged run does not have; without an update, and at the last row's seconds."""
    lowest = min(row["return"] for row in rows)
    for round in rounds:
        yield {**rows[-1], **dict.fromkeys(_MEANS), "round": round, "return": lowest}


def _row(
    summary: Mapping[str, Any], pending: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]
) -> dict[str, Any]:
    row: dict[str, Any] = {"round": summary["round"], "return": summary["evaluation_return"]}
    for column, name in _MEANS.items():
        known = [value for one in pending if (value := one.get(name)) is not None and np.isfinite(value)]
        row[column] = float(np.mean(known)) if known else None
    return {**row, **seconds}
