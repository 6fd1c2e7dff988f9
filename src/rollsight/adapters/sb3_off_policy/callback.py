"""`ReplayInfluenceCallback`: score every transition of the replay buffer, from time to time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rollsight import runs, targets
from rollsight.adapters import options
from rollsight.adapters.sb3 import continuing
from rollsight.adapters.sb3.streams import restored_after_failure
from rollsight.adapters.sb3_off_policy import held_out, scoring
from rollsight.adapters.sb3_off_policy.actors import actor_problem, check_actor
from rollsight.adapters.sb3_off_policy.columns import round_columns
from rollsight.adapters.sb3_off_policy.critics import Critic, critic_of
from rollsight.adapters.sb3_off_policy.held_out import HeldOut
from rollsight.adapters.sb3_off_policy.metadata import describe
from rollsight.adapters.sb3_off_policy.transitions import Transitions
from rollsight.adapters.sb3_off_policy.translate import Replay, check_buffer, translate
from rollsight.adapters.sb3_off_policy.weighted_buffer import WeightedReplayBuffer
from rollsight.environments.trained import MakeEnv
from rollsight.errors import OptionError, RollsightError
from rollsight.runs import summary
from rollsight.scoring import Scores
from rollsight.scoring.score import Backend
from rollsight.selection import Rule, Selection
from rollsight.watching import Watch


class ReplayInfluenceCallback(BaseCallback):
    """Scores every transition of the replay buffer of DQN, SAC, TD3 or DDPG: does training the critic on it push a
    target up or down?

    A round is one look at the buffer, after every so many updates of the model. Nothing is subclassed or patched, and
    `ReplayInfluenceCallback()` only looks: training is bit-identical to a run without it. With `selection=` and a
    `WeightedReplayBuffer` transitions are drawn by weight from then on, until the next round.

    Settings, the model and the environment are checked when `learn` begins. From then on watching does not stop
    training: what fails is a warning, once per kind, and a null in the round's summary, whose `warnings` say why.

    :param every: updates of the model (`train/n_updates`) between two rounds
    :param target: "calibration" (`f_calibration`: values against Monte-Carlo returns of fresh episodes), "bellman"
        (minus the TD loss of the 1,000 newest transitions), "improvement" (of SAC: what the actor's loss on a
        transition's state does to log pi times the Monte-Carlo advantages of fresh episodes), a `rollsight.targets`
        object for critics with records of its own, or a list of them: the first decides the selection, all are recorded
    :param episodes: fresh episodes of the present policy in each round, for "calibration" and "improvement"
    :param make_env: makes the environment of these episodes; None makes the model's again
    :param selection: a rule from `Scores` to `Selection` whose weights (not only 0 and 1) decide how often a transition
        is drawn, `selection.RankWeights()` for example; None draws as the host does
    :param run: run folder to write; an existing run is continued when the model is (`reset_num_timesteps=False`)
    :param overwrite: replace an existing run folder
    :param backend: of `score_records`
    :param metadata: further entries for the run folder's `run.json`
    :param on_round: called with each finished round's summary, for progress displays
    """

    def __init__(
        self,
        every: int = 10_000,
        target: str | targets.Target | Sequence[str | targets.Target] = "calibration",
        episodes: int = 10,
        make_env: MakeEnv | None = None,
        selection: Rule | None = None,
        run: str | Path | None = None,
        overwrite: bool = False,
        backend: Backend = "auto",
        metadata: Mapping[str, Any] | None = None,
        on_round: Callable[[Mapping[str, Any]], None] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        for name, value in (("every", every), ("episodes", episodes)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise OptionError(f"{{{name}}} is not possible: give a whole number of at least 1", **{name: value})
        if selection is not None and not callable(selection):
            raise OptionError("{selection} is not a rule: give selection.RankWeights(), say", selection=selection)
        options.check_backend(backend)
        self.every, self.episodes, self.make_env = int(every), int(episodes), make_env
        self.targets = scoring.targets_of(target)
        self.rule, self.backend = selection, backend
        self.run_path, self.overwrite = options.run_folder(run), overwrite
        self.metadata, self.on_round = dict(metadata or {}), on_round
        self.round = 0
        self.critic: Critic | None = None
        self.transitions: Transitions | None = None
        self.replay: Replay | None = None
        self.held_out: HeldOut | None = None
        self.scores: dict[str, Scores] = {}
        self.selection: Selection | None = None
        self._watch = Watch()
        self._writer: runs.RunWriter | None = None
        self._updates = 0  # of the model at the last round

    def close(self) -> None:
        """Leave the run folder to the next writer; `learn` ends with it. Closing twice is harmless."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _on_training_start(self) -> None:
        self.close()  # what a `learn` that raised left behind
        model = self._model
        check_buffer(model)
        self.critic = critic_of(model)
        self._check_weighing(model)
        if "improvement" in self.targets:
            check_actor(model)
        if self._plays:
            held_out.environment_of(model, self.make_env).one().close()
        buffer: Any = model.replay_buffer
        continued = model.num_timesteps > 0
        if self.transitions is None or self.transitions.step.shape != (buffer.buffer_size, buffer.n_envs):
            # An episode has at least one step: no episode of a run that is continued has such a number.
            self.transitions = Transitions(buffer.buffer_size, buffer.n_envs, model.num_timesteps)
        self.transitions.begin(reset=not continued, steps=model.num_timesteps // buffer.n_envs)
        self._updates = model._n_updates
        if not continued:
            self.round = 0
        if self.run_path is not None:
            names = [scoring.name_of(target) for target in self.targets]
            described = describe(model, targets=names, every=self.every, rule=self.rule)
            opened = continuing.open_run(self.run_path, model, described, self.metadata, self.overwrite, {})
            self._writer, self.round = opened.writer, opened.round
        self._watch.begin(self.round + 1)

    def _on_training_end(self) -> None:
        model = self._model
        assert self.transitions is not None
        assert model.replay_buffer is not None
        self.transitions.end(model.replay_buffer.pos)
        if model._n_updates > self._updates:
            training = model.policy.training  # as the update left it; rollouts begin with evaluation mode
            model.policy.set_training_mode(False)
            self._look()
            model.policy.set_training_mode(training)
        self.close()

    def _on_rollout_start(self) -> None:
        if self._model._n_updates - self._updates >= self.every:
            self._look()

    def _on_step(self) -> bool:
        # Before the host stores the step; `rewards`, `dones` and `infos` are its own.
        step = self.locals
        self._watch.attempt("identities of transitions", self._follow, step["rewards"], step["dones"], step["infos"])
        return True

    def _follow(self, rewards: Any, dones: Any, infos: Any) -> None:
        assert self.transitions is not None
        model = self._model
        normalizer = model.get_vec_normalize_env()
        own = rewards if normalizer is None else normalizer.get_original_reward()
        assert model.replay_buffer is not None
        limited = np.zeros(len(dones), np.bool_)
        if dones.any():
            limited[:] = [bool(info.get("TimeLimit.truncated")) for info in infos]
        self.transitions.add(model.replay_buffer.pos, own, dones, limited)

    @property
    def _model(self) -> OffPolicyAlgorithm:
        if not isinstance(self.model, OffPolicyAlgorithm):
            raise RollsightError(
                f"ReplayInfluenceCallback needs an algorithm with a replay buffer (DQN, SAC, TD3), not "
                f"{type(self.model).__name__}; for PPO and A2C there is rollsight.adapters.sb3.InfluenceCallback."
            )
        return self.model

    @property
    def _plays(self) -> bool:
        return any(target in scoring.HELD_OUT for target in self.targets)

    def _check_weighing(self, model: OffPolicyAlgorithm) -> None:
        if self.rule is not None and not isinstance(model.replay_buffer, WeightedReplayBuffer):
            raise OptionError(
                "{selection} weighs transitions, which needs a buffer that draws by weight: make the model with "
                "replay_buffer_class=WeightedReplayBuffer (of rollsight.adapters.sb3_off_policy)",
                selection=self.rule,
            )

    def _look(self) -> None:
        """One round: play, score, weigh, record."""
        model, clock = self._model, summary.Clock(time.perf_counter())
        self.round += 1
        self._updates = model._n_updates
        self.scores, self.selection, self.replay, self.held_out = {}, None, None, None
        if self.rule is not None:
            self._weighted.weigh(None)  # where this round makes no weights, those of an earlier one do not stay
        assert self.transitions is not None
        found: summary.Summary = {"timesteps": model.num_timesteps, "updates": model._n_updates, "scored": False}
        found |= self.transitions.take_ended().numbers()
        found["learning_rate"] = float(model.lr_schedule(model._current_progress_remaining))
        if self._plays:
            self.held_out = self._watch.attempt("held-out episodes", self._play)
            clock.lap("time_eval")
            if self.held_out is not None:
                found |= self.held_out.numbers()
        self.replay = self._watch.attempt("transitions", self._read)
        if self.replay is not None:
            found |= self._scored(self.replay, clock)
        found |= clock.laps | {"warnings": self._watch.said}
        if self._writer is not None:
            self._watch.attempt("round in the run folder", self._writer.write_round, self.round, found)
        self._watch.attempt("scalars in the logger", self._log, found)
        if self.on_round is not None:
            self._watch.attempt("call of on_round", self._show, {"round": self.round, **found})
        self._watch.begin(self.round + 1)

    def _scored(self, replay: Replay, clock: summary.Clock) -> summary.Summary:
        found: summary.Summary = {}
        for target in self.targets:
            if target in scoring.HELD_OUT and self.held_out is None:
                continue
            name = scoring.name_of(target)
            made = self._watch.attempt(f"scores of {name!r}", self._score, target, replay)
            if made is not None:
                self.scores[name], line = made
                found |= line
        leading = self.scores.get(scoring.name_of(self.targets[0]))
        if self.rule is not None:
            self.selection = None if leading is None else self._watch.attempt("weights", self._weigh, leading)
        clock.lap("time_score")
        if self._writer is not None:
            self._watch.attempt("records in the run folder", self._write_records, self._writer, replay)
            clock.lap("time_write")
        records = replay.records
        numbers = summary.of_records(records)
        numbers = {name: value for name, value in numbers.items() if not name.startswith("advantage")}
        errors = records.advantages[records.valid]
        numbers["td_error_mean"] = float(errors.abs().mean()) if len(errors) else None
        return {
            **numbers,
            **found,
            **summary.of_scoring(records.valid_rows, leading, self.selection, None, "weights"),
        }

    def _play(self) -> HeldOut:
        assert self.critic is not None
        made = held_out.environment_of(self._model, self.make_env)
        held = held_out.play(self._model, self.critic, made, self.episodes, self._key)
        if self._writer is not None:
            self._writer.write_evaluation(self.round, held.returns, held.lengths)
        return held

    def _read(self) -> Replay:
        assert self.critic is not None
        assert self.transitions is not None
        return translate(self._model, self.critic, self.transitions, self._key)

    def _score(self, target: str | targets.Target, replay: Replay) -> tuple[Scores, dict[str, float]]:
        assert self.critic is not None
        if target == "calibration":
            assert self.held_out is not None
            return scoring.score_with_trust(self.critic, replay, self.held_out, self.backend, self._key)
        if target == "improvement":
            assert self.held_out is not None
            actor = actor_problem(self._model, self.critic, replay, self.held_out, self._key)
            return scoring.score_actor(actor, self.backend), {}
        return scoring.score(target, self.critic, replay, self.backend), {}

    def _weigh(self, leading: Scores) -> Selection:
        assert self.rule is not None
        with restored_after_failure():
            chosen = self.rule(leading)
        self._weighted.weigh(chosen.weights.double().cpu().numpy())
        return chosen

    @property
    def _weighted(self) -> WeightedReplayBuffer:
        buffer = self._model.replay_buffer
        assert isinstance(buffer, WeightedReplayBuffer)
        return buffer

    def _write_records(self, writer: runs.RunWriter, replay: Replay) -> None:
        assert self.transitions is not None
        seed = self._model.seed or 0
        columns = round_columns(self.round, replay, self.transitions, self.scores, self.selection, seed)
        writer.write_records(self.round, columns)

    @property
    def _key(self) -> tuple[int, int]:
        return self._model.seed or 0, self.round

    def _show(self, finished: Mapping[str, Any]) -> None:
        assert self.on_round is not None
        with restored_after_failure():
            self.on_round(finished)

    def _log(self, found: Mapping[str, Any]) -> None:
        for name in (*summary.LOGGED, "value_bias", "value_rmse"):
            if isinstance(value := found.get(name), (int, float)):
                self.logger.record(f"influence/{name.removeprefix('score_')}", value)
