"""The training loop: collect, score, select, update, record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO

from rollsight import objectives, runs, targets
from rollsight.adapters.sb3 import summary
from rollsight.adapters.sb3.columns import round_columns
from rollsight.adapters.sb3.translate import Translated, evaluate_actions, update_rule
from rollsight.errors import RollsightError
from rollsight.policy import Policy
from rollsight.scoring import Scores, trust_line
from rollsight.selection import Rule, Selection
from rollsight.snapshot import Snapshot
from rollsight.training import ppo, twin
from rollsight.training.acting import Actor
from rollsight.training.batch import Batch, draw_minibatches
from rollsight.training.collect import Collector, Rollout
from rollsight.training.environments import Environments
from rollsight.training.evaluation import play
from rollsight.training.networks import network_of

# The purposes in the keys of random streams, (seed, round, purpose).
_ENVIRONMENT, _ACTION, _ORDER, _EVALUATION = 0xE4F, 0xAC7, 0x0DE5, 0xE7A1


def environment_key(seed: int) -> tuple[int, ...]:
    """The key of the training environments' streams; their episodes span rounds, so they are seeded once."""
    return (seed, 0, _ENVIRONMENT)


@dataclass(frozen=True)
class Plan:
    """What a run does beside training.

    selection: rule that leaves records out, None keeps all; every: score every k-th round only.
    snapshot_every: rounds between snapshots, 0 for none.
    evaluation: makes the evaluation's environments from a key; None for no evaluation. episodes: how many.
    """

    selection: Rule | None = None
    every: int = 1
    snapshot_every: int = 0
    evaluation: Callable[[tuple[int, ...]], Environments] | None = None
    episodes: int = 0


class FastTrainer:
    """Trains a Stable-Baselines3 PPO model's policy in compiled code.

    The model gives the initial parameters, the optimiser and every hyper-parameter, schedules included, and is the
    torch twin: after each round it holds the trained numbers again. Its own environment is not stepped.

    Raises `RollsightError` for what the compiled code does not cover.
    """

    def __init__(
        self, model: PPO, environments: Environments, plan: Plan, writer: runs.RunWriter | None = None
    ) -> None:
        if environments.count != model.n_envs:
            raise RollsightError(
                f"{environments.count} environments do not fit a model of {model.n_envs}; give as many."
            )
        self._model, self._plan, self._writer = model, plan, writer
        self._seed = model.seed or 0
        self._network = network_of(model.policy)
        self._optimizer, self._state = twin.optimizer_of(model.policy, model.policy.optimizer)
        self._parameters = twin.parameters_of(model.policy)
        self._collector = Collector(environments, self._network, model.gamma, model.gae_lambda)
        self._policy = Policy(model.policy, evaluate_actions)
        self._rounds, self._learning_rate = 0, float(model.lr_schedule(1.0))

    def train(self, rounds: int, on_round: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        """Train for `rounds` rounds more; schedules run to the last of them. on_round: called with each finished
        round's summary."""
        if self._rounds == 0:
            self._evaluate(0)
        total = self._model.num_timesteps + rounds * self._model.n_steps * self._model.n_envs
        for _ in range(rounds):
            self._rounds += 1
            done = self._round(total)
            if on_round is not None:
                on_round({"round": self._rounds, **done})
        twin.copy_state_into(self._model.policy.optimizer, self._model.policy, self._state, self._learning_rate)

    def _round(self, total: int) -> summary.Summary:
        model, plan, round = self._model, self._plan, self._rounds
        clock = summary.Clock(time.perf_counter())
        rng = np.random.default_rng((self._seed, round, _ACTION))
        rollout = self._collector.collect(self._parameters, model.n_steps, rng, round)
        clock.lap("time_collect")
        model.num_timesteps += len(rollout.records)
        model._update_current_progress_remaining(model.num_timesteps, total)
        rule = update_rule(model)
        assert rule is not None
        self._learning_rate = learning_rate = float(model.lr_schedule(model._current_progress_remaining))
        records, batch = rollout.records, Batch.of(rollout.records)
        scores, selection = None, None
        if round % plan.every == 0:
            scores = self._score(rollout, batch, rule.policy_term())
            selection = None if plan.selection is None else plan.selection(scores)
            clock.lap("time_score")
        weights = None if selection is None else selection.weights
        kept = records.valid if weights is None else weights
        order = np.random.RandomState(np.random.SeedSequence((self._seed, round, _ORDER)).generate_state(8))
        before = order.get_state()
        minibatches = draw_minibatches(order, len(records), rule, np.flatnonzero(kept.numpy()))
        trained = ppo.update(
            self._network, self._optimizer, self._parameters, self._state, batch, rule, learning_rate, minibatches
        )
        approx_kl = float(trained.approx_kl)  # waits for the compiled update
        clock.lap("time_train")
        found = self._record(rollout, scores, selection, rule.policy_term(), clock)
        if plan.snapshot_every and round % plan.snapshot_every == 0:
            twin.copy_state_into(model.policy.optimizer, model.policy, self._state, learning_rate)
            snapshot = Snapshot.take(round, self._policy, model.policy.optimizer, records, rule, weights)
            if self._writer is not None:
                self._writer.write_snapshot(round, replace(snapshot, numpy_state=before).save)
        moved = sum(float(np.sum((np.asarray(p) - self._parameters[n]) ** 2)) for n, p in trained.parameters.items())
        self._parameters, self._state = trained.parameters, trained.state
        twin.copy_into(model.policy, self._parameters)
        found |= {
            "update_norm": moved**0.5,
            "approx_kl": approx_kl,
            "optimizer_steps": minibatches.steps,
            "learning_rate": learning_rate,
        }
        found |= self._evaluate(round)
        if self._writer is not None:
            self._writer.write_round(round, found)
        return found

    def _score(self, rollout: Rollout, batch: Batch, term: objectives.PPO | objectives.A2C) -> Scores:
        assert isinstance(term, objectives.PPO)
        normalize = term.normalisation != "raw"
        values = ppo.scores(self._network, normalize, self._parameters, batch, term.clip_range)
        return Scores(
            torch.from_numpy(np.array(values)),
            None,
            rollout.records.ids,
            rollout.records.valid,
            target=targets.Return().name,
            normalisation=term.normalisation,
            backend="jax",
            reason="the fast engine's forward-mode derivative",
        )

    def _record(
        self,
        rollout: Rollout,
        scores: Scores | None,
        selection: Selection | None,
        objective: objectives.PPO | objectives.A2C,
        clock: summary.Clock,
    ) -> summary.Summary:
        """Trust line and records, while the twin still is the policy that collected them; the summary so far."""
        records, line = rollout.records, None
        if scores is not None:
            weights = None if selection is None else selection.weights
            line = trust_line(self._policy, records, objective, weights, seed=self._rounds)
            clock.lap("time_trust")
        if self._writer is not None:
            named = {} if scores is None else {scores.target: scores}
            translated = Translated(self._policy, records, records, objective, None)
            self._writer.write_records(
                self._rounds, round_columns(self._rounds, translated, rollout.episodes, named, selection)
            )
            clock.lap("time_write")
        valid, finished = int(records.valid.sum()), rollout.episodes.finished_returns
        return {
            "timesteps": self._model.num_timesteps,
            "records": len(records),
            "valid": valid,
            "invalid_rows": len(records) - valid,
            "scored": False,
            "episodes": len(finished),
            "return_mean": float(finished.mean()) if len(finished) else None,
            **(summary.of_scores(scores) if scores is not None else {}),
            **summary.of_selection(selection, valid, "repack"),
            **(summary.of_trust(line) if line is not None else {}),
            **clock.laps,
            "overhead_s": sum(clock.laps.get(f"time_{name}", 0.0) for name in ("score", "trust", "write")),
        }

    def _evaluate(self, round: int) -> summary.Summary:
        plan, key = self._plan, (self._seed, round, _EVALUATION)
        if plan.evaluation is None:
            return {}
        started = time.perf_counter()
        actor = Actor(self._network, self._parameters, self._model.observation_space.shape or ())
        returns, lengths = play(actor, plan.evaluation(key), plan.episodes, np.random.default_rng(key))
        if self._writer is not None:
            self._writer.write_evaluation(round, returns, lengths)
        return {"evaluation_return": float(np.mean(returns)), "time_eval": time.perf_counter() - started}
