"""A round of a run as fidelity needs it: its snapshot, a fresh buffer, and what outcomes are measured with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rollsight import runs, targets
from rollsight.analysis.discounts import discounts_of
from rollsight.analysis.fidelity import faults, variants
from rollsight.analysis.fidelity.outcomes import Measure
from rollsight.analysis.fidelity.stacked import target_values
from rollsight.analysis.fidelity.stacked_optimizers import Stacked
from rollsight.analysis.fidelity.trust import TrustRound, trust_over_training
from rollsight.arrays import Floats
from rollsight.environments.trained import MakeEnv, TrainedEnvironment, trained_environment
from rollsight.errors import RollsightError
from rollsight.playing.collect import collect
from rollsight.playing.common_episodes import CommonEpisodes
from rollsight.records import Records
from rollsight.runs import Run, column_as_floats
from rollsight.scoring import score_records, trust_line
from rollsight.snapshot import Snapshot
from rollsight.streams import Purpose, stream

FRESH, TRAIN, RETURNS = "fresh", "train", "returns"
_EPISODES = 16


@dataclass(frozen=True)
class FidelitySettings:
    """What is measured.

    run: the run folder.
    round: a round with a snapshot.
    masks: random halves to retrain on; more make the intervals narrower, at a retraining each.
    unit: what the masks keep or leave out, "record" or "episode".
    target: what the scores explain.
    returns: also play the retrained policies; much slower.
    seed: of every random stream.
    out: folder for finished retraining, which an interrupted call goes on from; None keeps nothing.
    """

    run: Path
    round: int
    masks: int = 100
    unit: str = "record"
    target: Literal["return", "objective"] = "return"
    returns: bool = False
    seed: int = 0
    out: Path | None = None


@dataclass(frozen=True)
class TrustFigures:
    """The round's trust line (see docs/definitions.md): how far its scores can be believed before any retraining.

    self_share: sum |own contribution| / sum |score|. Near 1: records mostly support themselves.
    split_half: rank correlation of the scores against two halves of the buffer.
    split_half_permuted: the same with advantages permuted over records: what the in-sample trap alone gives.
    update_norm: length of the round's parameter change.
    """

    self_share: float
    split_half: float
    split_half_permuted: float
    update_norm: float


class FidelityRound:
    """A round of a run, and what its fidelity is measured with."""

    def __init__(self, settings: FidelitySettings, make_env: MakeEnv | None = None) -> None:
        self._settings = settings
        self._run: Run = runs.open(settings.run)
        number = settings.round
        if number not in self._run.rounds:
            raise RollsightError(
                f"{self._run.path} has no round {number}: its rounds are {runs.spell(self._run.rounds)}"
            )
        # Masks are over the full buffer, whatever the run itself left out of this round.
        self.snapshot = replace(Snapshot.load(self._run.snapshot_path(number)), weights=None)
        purpose = "no fresh buffer can be collected"
        self._environment = trained_environment(self._run, purpose, round=number, make_env=make_env)
        self.env = self._environment.name
        self._discounts = discounts_of(self._run, purpose)
        self.objective = self.snapshot.rule.policy_term()
        self.target = self._target(None)
        self.described = f"{settings.target} {settings.seed} {settings.returns} {self._environment.identity}"
        self._fresh: Records | None = None

    def _target(self, records: Records | None) -> targets.Target:
        if self._settings.target == "objective":
            return targets.Objective(self.objective, records)
        return targets.Return(records)

    @property
    def fresh(self) -> Records:
        """As many records as the round has, collected anew by the policy that started it."""
        if self._fresh is None:
            count = int(self.snapshot.records.ids["env"].max()) + 1
            envs = self._environment.vectorised(count)
            steps = max(2, len(self.snapshot.records) // count)
            key = (self._settings.seed, self._settings.round, Purpose.FRESH_BUFFER)
            self._fresh = collect(self.snapshot.rebuild()[0], envs, steps, self._discounts, key)
            envs.close()
        return self._fresh

    def measures(self) -> dict[str, Measure]:
        """The target's value on the fresh buffer and on the training buffer."""
        policy, records = self.snapshot.rebuild()[0], self.snapshot.records
        aims = {FRESH: self._target(self.fresh), TRAIN: self.target}

        def measure_of(target: targets.Target) -> Measure:
            return lambda parameters: target_values(policy, parameters, target, records)

        return {name: measure_of(target) for name, target in aims.items()}

    def playing(self) -> Playing:
        return Playing(self.snapshot, self._environment, self._settings)

    def trust_over_training(self) -> list[TrustRound]:
        return trust_over_training(self._run, self.target)

    def trust(self, scores: dict[str, Tensor]) -> TrustFigures:
        snapshot = self.snapshot
        line = trust_line(snapshot.policy, snapshot.records, self.objective, seed=self._settings.round)
        reference = scores[variants.DEFAULT]
        own = (reference - scores[variants.SELF_OUT]).abs().sum()
        start = dict(snapshot.policy.module.named_parameters())
        moved = [(p - start[name].detach()).norm() for name, p in snapshot.replay("mask").parameters.items()]
        return TrustFigures(
            float(own / reference.abs().sum()),
            line.split_half,
            line.split_half_permuted,
            float(torch.stack(moved).norm()),
        )

    def faults(self) -> tuple[list[faults.Detection], list[str]]:
        """Detection of corrupted episodes, or the reason why it was not tried."""
        policy, seed = self.snapshot.policy, self._settings.seed
        held_out = self._target(self.fresh)

        def score(records: Records, target: targets.Target, **options: Any) -> Tensor:
            return score_records(policy, records, target, self.objective, **options).values

        rng = stream(seed, self._settings.round, Purpose.GUESS)
        scorers: dict[str, faults.Scorer] = {
            variants.DEFAULT: lambda records: score(records, self.target),
            variants.CROSS_FIT: lambda records: score(records, self.target, cross_fit=True, seed=seed),
            "fresh-buffer target": lambda records: score(records, held_out),
            variants.BASELINES[0]: lambda records: self.objective.prepare(records).advantages,
            variants.BASELINES[3]: lambda records: torch.from_numpy(rng.standard_normal(len(records))),
        }
        try:
            buffer = faults.Buffer(self.snapshot.records, self._discounts["gamma"], self._discounts["gae_lambda"])
            env_rewards = column_as_floats(self._run.records(self._settings.round), "reward")
            stale, note = self._stale_values()
            return faults.detect(buffer, scorers, env_rewards, stale, seed), [note]
        except RollsightError as error:
            return [], [f"No faults were injected: {error}"]

    def _stale_values(self) -> tuple[Floats, str]:
        """(N,) values of these states by the critic of the run's first snapshot; 0 where this is the first."""
        first = self._run.snapshot_rounds[0]
        if first == self._settings.round:
            note = "Stale values are 0: this is the run's first snapshot."
            return np.zeros(len(self.snapshot.records)), note
        old = Snapshot.load(self._run.snapshot_path(first)).policy
        with torch.no_grad():
            values = old(self.snapshot.records).value
        assert values is not None  # the update of every snapshot has a value loss
        return values.double().cpu().numpy(), f"Stale values are those of the critic at the start of round {first}."


class Playing:
    """The measure "returns", while its environments are open; nothing where returns are not asked for."""

    def __init__(self, snapshot: Snapshot, environment: TrainedEnvironment, settings: FidelitySettings) -> None:
        self._policy = snapshot.rebuild()[0]
        key = (settings.seed, settings.round, Purpose.PLAYED)
        self._episodes = CommonEpisodes(environment.vectorised, _EPISODES, key) if settings.returns else None

    def __enter__(self) -> dict[str, Measure]:
        return {} if self._episodes is None else {RETURNS: self._play}

    def __exit__(self, *_: object) -> None:
        if self._episodes is not None:
            self._episodes.close()

    def _play(self, parameters: Stacked) -> Tensor:
        """(m,) mean returns over the same episodes for all."""
        assert self._episodes is not None
        own, means = self._policy.trainable(), []
        for i in range(len(next(iter(parameters.values())))):
            with torch.no_grad():
                for name, p in own.items():
                    p.copy_(parameters[name][i])
            means.append(float(self._episodes(self._policy.module).mean()))
        return torch.tensor(means, dtype=torch.float64)
