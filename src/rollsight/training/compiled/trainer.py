"""The training loop: collect, score, select, update, record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from stable_baselines3 import PPO

from rollsight import runs
from rollsight.adapters import findings
from rollsight.adapters.sb3.columns import round_columns
from rollsight.adapters.sb3.translate import Translated, evaluate_actions, update_rule
from rollsight.doctor.live import LiveDoctor
from rollsight.errors import Diverged, RollsightError
from rollsight.policy import Policy
from rollsight.runs import summary
from rollsight.runs.columns import Columns
from rollsight.scoring import trust_line
from rollsight.selection import Selection
from rollsight.snapshot import Snapshot
from rollsight.streams import Purpose, stream
from rollsight.training.compiled import conversion
from rollsight.training.compiled.acting import Actor
from rollsight.training.compiled.arms import Arm, Filtered, Update
from rollsight.training.compiled.collect import Collector, Rollout
from rollsight.training.compiled.environments import Environments
from rollsight.training.compiled.evaluation import play, side_by_side
from rollsight.training.compiled.networks import network_of
from rollsight.training.compiled.ppo import MEANS
from rollsight.training.compiled.round import Round
from rollsight.training.restoring import History
from rollsight.watching import Watch


def environment_key(seed: int, after: int = 0) -> tuple[int, ...]:
    """The key of the training environments' streams; their episodes span rounds, so they are seeded once, and anew
    after the round where a resumed run could not restore them."""
    return (seed, after, Purpose.ENVIRONMENTS)


@dataclass(frozen=True)
class Plan:
    """What a run does with its rounds.

    arm: how each round trains. A round's snapshot replays the arms that are one selection (`arms.Filtered`).
    snapshot_every: rounds between snapshots, 0 for none.
    evaluation: makes the evaluation's environments, from how many and their key; None for no evaluation.
    episodes: of each evaluation.
    evaluate_every: rounds from one evaluation to the next; there is one before training too.
    clock: what phases are timed with; `time.process_time` does not see what else the machine does.
    """

    arm: Arm = field(default_factory=Filtered)
    snapshot_every: int = 0
    evaluation: Callable[[int, tuple[int, ...]], Environments] | None = None
    episodes: int = 0
    evaluate_every: int = 1
    clock: Callable[[], float] = time.perf_counter


# Of a round whose update was not made.
_NO_UPDATE = {"update_norm": None, "approx_kl": None, **dict.fromkeys(MEANS), "optimizer_steps": 0}


def _check_finite(rollout: Rollout, number: int) -> None:
    """`Diverged` for a round that nothing can be learned from."""
    rewards = rollout.episodes.reward
    wrong = np.argwhere(~np.isfinite(rewards))
    if len(wrong):
        step, env = wrong[0].tolist()
        raise Diverged(
            f"the reward at step {step} of environment {env} in round {number} is {rewards[step, env]}, by which every "
            "parameter would become NaN: look at the environment's reward there; the round's records are kept."
        )
    if rollout.broken:  # finite parameters can be too large to act by
        raise Diverged.in_round(number - 1)


class CompiledTrainer:
    """Trains a Stable-Baselines3 PPO model's policy in compiled code.

    The model gives the initial parameters, the optimiser and every hyper-parameter, schedules included, and is the
    counterpart in torch: after each round it holds the trained numbers again. Its own environment is not stepped.

    Raises `RollsightError` for what the compiled code does not cover, and `Diverged` from `train`; the model then has
    the parameters before that round's update. Nothing else that fails once rounds are trained stops them: what only
    watches is a warning, and a null in the round's summary, whose `warnings` say why.
    """

    def __init__(self, model: PPO, environments: Environments, plan: Plan) -> None:
        if environments.count != model.n_envs:
            raise RollsightError(
                f"{environments.count} environments do not fit a model of {model.n_envs}; give {model.n_envs}."
            )
        self._model, self._plan = model, plan
        self.writer: runs.RunWriter | None = None  # of the run folder, where there is one
        self.doctor: LiveDoctor | None = None  # watches the rounds, where one is asked for
        self.on_records: Callable[[Columns], None] | None = None  # is given the columns of each round's records
        self._seed = model.seed or 0
        self._network = network_of(model.policy)
        self._optimizer, self._state = conversion.optimizer_of(model.policy, model.policy.optimizer)
        self._parameters = conversion.parameters_of(model.policy)
        self._collector = Collector(environments, self._network, model.gamma, model.gae_lambda)
        self._policy = Policy(model.policy, evaluate_actions)
        self._rounds, self._learning_rate = 0, float(model.lr_schedule(1.0))
        self._watch = Watch()

    def state(self) -> dict[str, Any]:
        """All that the next round depends on, as tensors and plain values; random streams are keyed by the round."""
        return {
            "timesteps": self._model.num_timesteps,
            "updates": self._model._n_updates,
            "parameters": conversion.tensors_of(self._parameters),
            "optimizer": conversion.tensors_of(self._state),
            "collection": self._collector.state(),
        }

    def restore(self, state: Mapping[str, Any], history: History | None) -> bool:
        """Go on from a `state` with its `round`; whether the episodes under way do so too (`Collector.restore`)."""
        self._rounds = state["round"]
        self._model.num_timesteps, self._model._n_updates = state["timesteps"], state["updates"]
        self._parameters = conversion.arrays_of(state["parameters"])
        self._state = conversion.arrays_of(state["optimizer"])
        conversion.copy_into(self._model.policy, self._parameters)
        return self._collector.restore(state["collection"], history)

    def train(self, rounds: int, on_round: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        """Train for `rounds` rounds more; schedules run to the last of them. on_round: called with each finished
        round's summary, and before the first one with that of round 0 where there is an evaluation."""
        if self._rounds == 0 and (untrained := self._evaluate(0)) and on_round is not None:
            on_round({"round": 0, **untrained})
        total = self._model.num_timesteps + rounds * self._model.n_steps * self._model.n_envs
        for _ in range(rounds):
            self._rounds += 1
            done = self._round(total)
            if on_round is not None:
                on_round({"round": self._rounds, **done})
        conversion.copy_state_into(self._model.policy.optimizer, self._model.policy, self._state, self._learning_rate)

    def _round(self, total: int) -> summary.Summary:
        model, plan, number = self._model, self._plan, self._rounds
        self._watch.begin(number)
        clock = summary.Clock(plan.clock(), plan.clock)
        rng = stream(self._seed, number, Purpose.ACTIONS)
        rollout = self._collector.collect(self._parameters, model.n_steps, rng, number)
        clock.lap("time_collect")
        round = self._frozen(rollout, total)
        try:
            _check_finite(rollout, number)
            update = plan.arm(round)
        except Diverged:  # after its records are kept: they are what one looks at then
            self._store(self._record(rollout, None, round, clock) | _NO_UPDATE)
            raise
        clock.measured({"time_score": update.time_score, "time_train": update.time_train})
        found = self._record(rollout, update, round, clock)
        if plan.snapshot_every and number % plan.snapshot_every == 0:
            self._watch.attempt("snapshot", lambda: self._take_snapshot(rollout, round, update.selection))
        model._n_updates += round.rule.n_epochs  # as the host counts them
        moved = update.trained.parameters
        length = sum(float(np.sum(np.square(p - self._parameters[n], dtype=np.float64))) for n, p in moved.items())
        diverged = not np.isfinite(length)
        if not diverged:
            self._parameters, self._state = moved, update.trained.state
            conversion.copy_into(model.policy, self._parameters)
        found |= {
            "update_norm": length**0.5,
            "approx_kl": float(update.trained.approx_kl),
            **{name: float(mean) for name, mean in update.trained.means.items()},
            "optimizer_steps": update.steps,
            "updates": model._n_updates,
            "learning_rate": round.learning_rate,
            **summary.of_speed(found),
        }
        if number % plan.evaluate_every == 0 and not diverged:
            found |= self._watch.attempt("evaluation", lambda: self._evaluate(number)) or {}
        self._store(found)
        if diverged:
            raise Diverged.in_round(number)
        return found

    def _store(self, found: summary.Summary) -> None:
        """Complete the round in the run folder with its summary."""
        findings.report(self.doctor, self._rounds, found, self._watch, self.writer)
        found["warnings"] = self._watch.said
        if (writer := self.writer) is not None:
            self._watch.attempt("round in the run folder", lambda: writer.write_round(self._rounds, found))

    def _take_snapshot(self, rollout: Rollout, round: Round, selection: Selection | None) -> None:
        policy, weights = self._model.policy, None if selection is None else selection.weights
        conversion.copy_state_into(policy.optimizer, policy, self._state, round.learning_rate)
        snapshot = Snapshot.take(round.number, self._policy, policy.optimizer, rollout.records, round.rule, weights)
        if self.writer is not None:
            before = round.order().get_state()
            self.writer.write_snapshot(round.number, replace(snapshot, numpy_state=before).save)

    def _frozen(self, rollout: Rollout, total: int) -> Round:
        """The round at its end of collection, with the schedules where they are by then."""
        model = self._model
        model.num_timesteps += len(rollout.records)
        model._update_current_progress_remaining(model.num_timesteps, total)
        rule = update_rule(model)
        assert rule is not None
        self._learning_rate = float(model.lr_schedule(model._current_progress_remaining))
        return Round(
            self._rounds,
            self._seed,
            self._network,
            self._optimizer,
            self._parameters,
            self._state,
            rollout.records,
            rule,
            self._learning_rate,
            model.gamma,
            model.gae_lambda,
            rollout.episodes.finished_returns,
            self._plan.clock,
            self._watch,
        )

    def _record(
        self,
        rollout: Rollout,
        update: Update | None,
        round: Round,
        clock: summary.Clock,
    ) -> summary.Summary:
        """Trust line and records, while the model still is the policy that collected them; the summary so far."""
        records, objective, line, watch = rollout.records, round.rule.policy_term(), None, self._watch
        scores, selection, semantic = None, None, "repack"
        if update is not None:
            scores, selection, semantic = update.scores, update.selection, update.semantic
        if scores is not None:
            weights = None if selection is None else selection.weights
            line = watch.attempt(
                "trust line", lambda: trust_line(self._policy, records, objective, weights, seed=self._rounds)
            )
            clock.lap("time_trust")
        entropy: float | None = None
        if (writer := self.writer) is not None:
            named = {} if scores is None else {scores.target: scores}
            translated = Translated(self._policy, records, records, objective, None)

            def write() -> float | None:
                columns = round_columns(self._rounds, translated, rollout.episodes, named, selection)
                if (doctor := self.doctor) is not None:
                    watch.attempt("records for the doctor", doctor.keep, self._rounds, columns)
                writer.write_records(self._rounds, columns)
                if (given := self.on_records) is not None:
                    watch.attempt("records for trackers", given, columns)
                return summary.mean_of(columns["entropy"], columns["valid"])

            entropy = watch.attempt("records in the run folder", write)
            clock.lap("time_write")
        return {
            "timesteps": self._model.num_timesteps,
            **summary.of_records(records),
            **rollout.episodes.numbers(),
            "entropy_mean": entropy,
            **summary.of_scoring(records.valid_rows, scores, selection, line, semantic),
            **clock.laps,
            "overhead_s": sum(clock.laps.get(f"time_{name}", 0.0) for name in ("score", "trust", "write")),
        }

    def _evaluate(self, round: int) -> summary.Summary:
        plan, key = self._plan, (self._seed, round, Purpose.EVALUATION)
        if plan.evaluation is None:
            return {}
        started = plan.clock()
        actor = Actor(self._network, self._parameters, self._model.observation_space.shape or ())
        environments = plan.evaluation(side_by_side(plan.episodes), key)
        returns, lengths = play(actor, environments, plan.episodes, stream(*key))
        if self.writer is not None:
            self.writer.write_evaluation(round, returns, lengths)
        return {"evaluation_return": float(np.mean(returns)), "time_eval": plan.clock() - started}
