"""`InfluenceCallback`: score every rollout buffer, drop what hurts, keep what was seen."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rollsight import objectives, runs, targets
from rollsight.adapters import findings, options
from rollsight.adapters.sb3 import buffer, continuing
from rollsight.adapters.sb3.columns import as_trained_on, round_columns
from rollsight.adapters.sb3.episodes import EpisodeTracker
from rollsight.adapters.sb3.finite import NotFinite, not_finite
from rollsight.adapters.sb3.metadata import describe, statistics_entry
from rollsight.adapters.sb3.round_update import RoundUpdate
from rollsight.adapters.sb3.selecting import score, select
from rollsight.adapters.sb3.streams import restored_after_failure, streams_of_their_own
from rollsight.adapters.sb3.translate import Translated, translate, update_rule
from rollsight.adapters.top_records import top_records
from rollsight.doctor.live import LiveDoctor
from rollsight.errors import RollsightError
from rollsight.runs import summary
from rollsight.runs.columns import Columns
from rollsight.runs.episodes import RoundEpisodes
from rollsight.scoring import Scores, TrustLine, trust_line
from rollsight.scoring.score import Backend
from rollsight.selection import Rule, Selection
from rollsight.snapshot import Snapshot
from rollsight.streams import Purpose
from rollsight.trackers import Trackers, writers_of
from rollsight.watching import Watch

Evaluate = Callable[[OnPolicyAlgorithm, int], tuple[Sequence[float], Sequence[int]]]


class InfluenceCallback(BaseCallback):
    """Scores every record of every rollout buffer before `train()` and, where asked, leaves the harmful ones out of it.

    Works with PPO and A2C and with sb3-contrib's TRPO, MaskablePPO and RecurrentPPO, without subclassing or patching
    them. Put it last in a list of callbacks that edit rewards or advantages. `InfluenceCallback()` only scores:
    training is bit-identical to a run without it.

    Settings are checked when the callback is made and when `learn` begins. A rule, target, objective or backend of your
    own that does not fit the model raises in the first round that is scored, before its update. From then on watching
    does not stop training: what fails is a warning, once per kind, and a null in the round's summary, whose `warnings`
    say why; where a selection was asked for and cannot be had, that round keeps every record.

    After `learn` raised, the next `learn` finds the model as the host made it, and the next callback of this process
    takes over the run folder. `with InfluenceCallback(...) as influence: model.learn(..., callback=influence)` leaves
    both at once.

    :param drop: fraction p of the negative-score records to leave out of each update, lowest first (IIF); None drops
        nothing. At least one minibatch (`batch_size` records) always stays
    :param target: "return" (`f_return`), "objective" (the host's own), a `rollsight.targets` object, or a list of them:
        the first decides the selection, all are recorded
    :param selection: another rule: text ("negative:0.5", "random:0.5"), a `rollsight.selection` rule, or any callable
        from `Scores` to `Selection`; not together with `drop`
    :param unit: what `drop` and a rule given as text drop: "record" or "episode"
    :param every: score every k-th round, and keep everything in the others
    :param run: run folder to write; an existing run is continued when the model is (`reset_num_timesteps=False`)
    :param overwrite: replace an existing run folder
    :param snapshots: "every:K", "all" or "none": rounds frozen for replay; every 10th of a run folder by default
    :param objective: the per-record loss; None follows the host's clipped policy term and normalisation
    :param backend: of `score_records`
    :param precondition: take the optimiser's second moments into account (`optimizer=` of `score_records`)
    :param cross_fit: score each record against the half of the buffer that does not hold it
    :param doctor: look for known faults in the rounds while they come (`rollsight doctor`): each finding is a warning
        once (by the model's logger where it writes texts, else Python's), and a row of the run folder's table
        `findings`. Takes at most a hundredth of the time
    :param metadata: further entries for the run folder's `run.json`
    :param evaluate: called after each round (and before the first, as round 0) with the model and the round; returns
        the evaluation episodes' returns and lengths, which go to the run folder. Its time is kept apart from
        training's, and its random numbers (Python, NumPy, torch) are its own
    :param on_round: called with each finished round's summary, for progress displays
    """

    def __init__(
        self,
        drop: float | None = None,
        target: str | targets.Target | Sequence[str | targets.Target] = "return",
        selection: str | Rule | None = None,
        unit: str = "record",
        every: int = 1,
        run: str | Path | None = None,
        overwrite: bool = False,
        snapshots: str | None = None,
        objective: objectives.Objective | None = None,
        backend: Backend = "auto",
        precondition: bool = False,
        cross_fit: bool = False,
        doctor: bool = False,
        metadata: Mapping[str, Any] | None = None,
        evaluate: Evaluate | None = None,
        on_round: Callable[[Mapping[str, Any]], None] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self._options = (drop, selection, unit)
        options.rule_of(*self._options)  # complain now, not after the first rollout
        self.every = options.check_every(every)
        self.targets = options.targets_of(target)
        self.run_path = options.run_folder(run)
        self.overwrite = overwrite
        self.snapshot_every = options.interval_of(
            ("none" if run is None else "every:10") if snapshots is None else snapshots
        )
        options.check_backend(backend)
        self.objective, self.backend = objective, backend
        self.precondition, self.cross_fit = precondition, cross_fit
        self.metadata = dict(metadata or {})
        self.doctor = doctor
        self._doctor: LiveDoctor | None = None
        self.evaluate, self.on_round = evaluate, on_round
        self.round = 0
        self.scores: dict[str, Scores] = {}
        self.selection: Selection | None = None
        self.snapshot: Snapshot | None = None
        # Whether scoring follows settings of the user's own, which may not fit the model; until it has once been tried.
        given = target if isinstance(target, (list, tuple)) else [target]
        own_targets = any(not isinstance(one, str) for one in given)
        self._own = own_targets or objective is not None or backend != "auto" or precondition
        self._tried = False
        self._watch = Watch()
        self._rule: Rule | None = None
        self.tracker: EpisodeTracker | None = None
        self.trackers = Trackers()
        self.how_continued: Mapping[str, Any] = {}  # further entries for the `continued` of `run.json`
        self._writer: runs.RunWriter | None = None
        self._summary: summary.Summary | None = None
        self._update: RoundUpdate | None = None
        self._started = 0.0

    def close(self) -> None:
        """Leave the model as it was found, and the run folder to the next writer. `learn` ends with it; closing twice
        is harmless."""
        if isinstance(model := getattr(self, "model", None), OnPolicyAlgorithm):
            buffer.release(model.rollout_buffer)
        if self._writer is not None:
            self._writer.close()
        self._writer = self._summary = self._update = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and self._summary is not None:
            # A round whose update failed is what one looks at then; an interrupted one can be had again.
            named = f"{type(error).__name__}: {error}".splitlines()[0]
            self._watch.warn("update", f"training stopped before the update was over ({named})")
            self._store_round()
        self.close()

    def _on_training_start(self) -> None:
        self.close()  # what a `learn` that raised left behind
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        """Everything that may refuse to train."""
        model = self._model
        continued = model.num_timesteps > 0
        buffered = model.n_steps * model.n_envs
        self.round = model.num_timesteps // buffered
        evaluated, first_episode = False, 0
        if self.run_path is not None:
            opened = continuing.open_run(
                self.run_path, model, self._described(), self.metadata, self.overwrite, self.how_continued
            )
            self._writer, self.round = opened.writer, opened.round
            evaluated, first_episode = opened.evaluated, opened.first_episode
        if self.tracker is None or not continued:
            self.tracker = EpisodeTracker(first_episode)
        self.tracker.begin_training(model)
        self._rule = self._rule_for(model, buffered)
        self._doctor = LiveDoctor(self._described(), self.run_path) if self.doctor else None
        if self.snapshot_every and update_rule(model) is None:
            warnings.warn(
                f"{type(model).__name__}'s update is not one that Rollsight can replay, so no snapshots are taken",
                stacklevel=2,
            )
        if self.round == 0 and not evaluated:
            self._evaluate()

    def _described(self) -> dict[str, Any]:
        drop, selection, unit = self._options
        rule = selection if drop is None else f"negative:{drop}"
        names = [target.name for target in self.targets]
        return describe(self._model, rule=rule, unit=unit, targets=names, every=self.every)

    def _on_training_end(self) -> None:
        self._finish_round()
        self.close()

    def _on_rollout_start(self) -> None:
        self._finish_round()
        self._watch.begin(self.round + 1)
        self._watch.attempt("episodes", self._episodes.begin_rollout, self._model)
        self._started = time.perf_counter()

    def _on_step(self) -> bool:
        step = self.locals
        self._watch.attempt("episodes", self._episodes.step, self._model, step["rewards"], step["dones"], step["infos"])
        return True

    def _on_rollout_end(self) -> None:
        """The buffer is full and the policy still the one that filled it: score, select, record."""
        model, clock = self._model, summary.Clock(self._started)
        clock.lap("time_collect")
        self.round += 1
        self.scores, self.selection, self._update, line = {}, None, None, None
        self._summary = {"timesteps": model.num_timesteps, "records": model.n_steps * model.n_envs, "scored": False}
        read = self._watch.attempt("records", self._read)
        if read is None:
            return
        translated, episodes, wrong = read
        if wrong is not None:
            told = f"{wrong.text}: nothing is scored or dropped, and the update may ruin the policy"
            self._watch.warn("numbers", told)
        elif self.round % self.every == 0:
            line = self._score_and_select(translated, clock)
        self._update = self._watch.attempt("view of the update", self._follow_update, translated)
        if self._update is None:
            self.selection = None
        entropy: float | None = None
        shown = bool(self.scores) and self.trackers.wanted(writers_of(self.logger))
        if self._writer is not None or self._doctor is not None or shown:
            entropy = self._watch.attempt("records in the run folder", self._write_records, *read, shown)
            clock.lap("time_write")
        semantic = "repack" if translated.position is None else "mask"
        records = translated.records
        self._summary |= {**summary.of_records(records), **episodes.numbers(), "entropy_mean": entropy}
        self._summary |= summary.of_scoring(records.valid_rows, self._leading, self.selection, line, semantic)
        if self.snapshot_every and self.round % self.snapshot_every == 0:
            self._summary |= self._watch.attempt("VecNormalize statistics", statistics_entry, model.get_env()) or {}
        self._summary |= clock.laps
        self._summary["overhead_s"] = sum(clock.laps.get(f"time_{name}", 0.0) for name in ("score", "trust", "write"))
        self._watch.attempt("scalars in the logger", self._log)
        if wrong is not None:
            self._store_round()  # now: the host may stop in the update

    @property
    def writer(self) -> runs.RunWriter | None:
        """Of the run folder, while training lasts."""
        return self._writer

    @property
    def _model(self) -> OnPolicyAlgorithm:
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise RollsightError(
                f"InfluenceCallback needs an on-policy algorithm with a rollout buffer (PPO, A2C, TRPO, ...), not "
                f"{type(self.model).__name__}."
            )
        return self.model

    @property
    def _episodes(self) -> EpisodeTracker:
        assert self.tracker is not None
        return self.tracker

    def _rule_for(self, model: OnPolicyAlgorithm, buffered: int) -> Rule | None:
        floor = min(getattr(model, "batch_size", None) or 2, buffered)
        rule = options.rule_of(*self._options, seed=model.seed or 0, floor=floor)
        if rule is not None and floor == buffered > 2:
            warnings.warn(
                f"batch_size={floor} takes the whole buffer of {buffered} records and is the number that must stay, so "
                "nothing can be dropped; give the model a smaller batch_size",
                stacklevel=2,
            )
        return rule

    def _read(self) -> tuple[Translated, RoundEpisodes, NotFinite | None]:
        model = self._model
        last_dones = model._last_episode_starts
        episodes = self._episodes.end_rollout(model.rollout_buffer.episode_starts, last_dones)
        grid = {"round": np.full_like(episodes.episode, self.round), "episode": episodes.episode}
        wrong = not_finite(model.rollout_buffer, episodes)
        valid = None if wrong is None else wrong.finite
        return translate(model, grid, self.objective, valid), episodes, wrong

    def _score_and_select(self, translated: Translated, clock: summary.Clock) -> TrustLine | None:
        own = self._given if self._own else self._watch.attempt
        optimizer = self._model.policy.optimizer if self.precondition else None
        for target in self.targets:
            given = translated, target, self.backend, optimizer, self.cross_fit, self.round
            if (scores := own(f"scores of {target.name!r}", score, *given)) is not None:
                self.scores[target.name] = scores
        if self._rule is not None and self._leading is not None:
            self.selection = self._given("selection", self._select, self._rule, self._leading)
        self._tried = True
        clock.lap("time_score")
        weights = None if self.selection is None else translated.per_scored(self.selection.weights)
        given_line = translated.policy, translated.scored, translated.objective, weights
        line = self._watch.attempt("trust line", trust_line, *given_line, seed=self.round)
        clock.lap("time_trust")
        return line

    def _given(self, part: str, call: Callable[..., Any], *args: Any) -> Any:
        """What the user gave may stop the first round that is scored, in which nothing was trained on yet."""
        return self._watch.attempt(part, call, *args) if self._tried else call(*args)

    @property
    def _leading(self) -> Scores | None:
        """The scores that decide the selection."""
        return self.scores.get(self.targets[0].name)

    def _select(self, rule: Rule, scores: Scores) -> Selection:
        chosen = select(rule, scores, self.round)
        if len(chosen.dropped) and buffer.selects(self._model.rollout_buffer):
            raise RollsightError(
                "Two InfluenceCallbacks select records of one model; let one select, and give it a list of targets."
            )
        if chosen.message and self.verbose:
            print(f"round {self.round}: {chosen.message}")
        return chosen

    def _follow_update(self, translated: Translated) -> RoundUpdate:
        due = self.snapshot_every and self.round % self.snapshot_every == 0
        keep = self._keep_snapshot if due else None
        return RoundUpdate(self._model, self.round, translated, self.selection, self._watch, keep, self._store_round)

    def _keep_snapshot(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        if self._writer is not None:
            self._writer.write_snapshot(self.round, snapshot.save)

    def _finish_round(self) -> None:
        """After `train()`: what the update did, then the evaluation; the round is complete with its summary."""
        buffer.release(self._model.rollout_buffer)
        if self._summary is None:
            return
        if self._update is not None:
            self._summary |= self._watch.attempt("numbers of the update", self._update.numbers) or {}
            self._summary |= summary.of_speed(self._summary)
        self._watch.attempt("scalars in the logger", self._log)
        self._watch.attempt("evaluation", self._evaluate)
        log = findings.text_log(self.logger)
        findings.report(self._doctor, self.round, self._summary, self._watch, self._writer, log)
        self._store_round()
        finished = {"round": self.round, **self._summary, "warnings": self._watch.said}
        self._watch.attempt("scalars for trackers", self.trackers.log, finished, host_logger=self.logger)
        if self.on_round is not None:
            self._watch.attempt("call of on_round", self._show, finished)
        self._summary = self._update = None

    def _show(self, finished: Mapping[str, Any]) -> None:
        assert self.on_round is not None
        with restored_after_failure():
            self.on_round(finished)

    def _store_round(self) -> None:
        """Write the summary, once: what comes later in a round that was stored early is not in the run folder."""
        assert self._summary is not None
        self._summary["warnings"] = self._watch.said
        if self._writer is not None and self._writer.last_round < self.round:
            self._watch.attempt("round in the run folder", self._writer.write_round, self.round, self._summary)

    def _write_records(
        self, translated: Translated, episodes: RoundEpisodes, wrong: NotFinite | None, shown: bool
    ) -> float | None:
        """Returns the policy's mean entropy over them, where it is recorded. shown: whether trackers get some."""
        recorded = self._writer is not None or self._doctor is not None
        columns = round_columns(self.round, translated, episodes, self.scores, self.selection, entropy=recorded)
        if wrong is not None:
            columns |= as_trained_on(self._model.rollout_buffer)
        if self._doctor is not None:
            self._watch.attempt("records for the doctor", self._doctor.keep, self.round, columns)
        if self._writer is not None:
            self._writer.write_records(self.round, columns)
        if shown:
            self._watch.attempt("records for trackers", self._keep_for_trackers, columns)
        return summary.mean_of(columns["entropy"], columns["valid"]) if recorded else None

    def _keep_for_trackers(self, columns: Columns) -> None:
        self.trackers.keep(top_records(columns, self._described()))

    def _evaluate(self) -> None:
        if self.evaluate is None:
            return
        started = time.perf_counter()
        with streams_of_their_own(self._model.seed or 0, self.round, Purpose.EVALUATION):
            returns, lengths = self.evaluate(self._model, self.round)
        if self._summary is not None:
            self._summary |= {"evaluation_return": float(np.mean(returns)), "time_eval": time.perf_counter() - started}
        if self._writer is not None:
            self._writer.write_evaluation(self.round, returns, lengths)

    def _log(self) -> None:
        assert self._summary is not None
        for name in summary.LOGGED:
            if isinstance(value := self._summary.get(name), (int, float)):
                self.logger.record(f"influence/{name.removeprefix('score_')}", value)
