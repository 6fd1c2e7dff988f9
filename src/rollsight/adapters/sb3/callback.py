"""`InfluenceCallback`: score every rollout buffer, drop what hurts, keep what was seen."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch.utils.hooks import RemovableHandle

from rollsight import objectives, runs, targets
from rollsight.adapters import options, summary
from rollsight.adapters.sb3 import buffer
from rollsight.adapters.sb3.columns import round_columns
from rollsight.adapters.sb3.episodes import EpisodeTracker
from rollsight.adapters.sb3.metadata import describe, statistics_entry
from rollsight.adapters.sb3.streams import streams_of_their_own
from rollsight.adapters.sb3.translate import Translated, translate, update_rule
from rollsight.errors import RollsightError
from rollsight.scoring import Scores, score_records, trust_line
from rollsight.scoring.score import Backend
from rollsight.selection import Rule, Selection
from rollsight.snapshot import Snapshot

_EVALUATION = 0xE7A1  # the purpose in the key of evaluation's random streams

Evaluate = Callable[[OnPolicyAlgorithm, int], tuple[Sequence[float], Sequence[int]]]


class InfluenceCallback(BaseCallback):
    """Scores every record of every rollout buffer before `train()` and, where asked, leaves the harmful ones out of it.

    Works with PPO and A2C and with sb3-contrib's TRPO, MaskablePPO and RecurrentPPO, without subclassing or patching
    them. Put it last in a list of callbacks that edit rewards or advantages. `InfluenceCallback()` only scores:
    training is bit-identical to a run without it.

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
        self.run_path = None if run is None else Path(run)
        self.overwrite = overwrite
        self.snapshot_every = options.interval_of(
            ("none" if run is None else "every:10") if snapshots is None else snapshots
        )
        if backend not in get_args(Backend):
            raise RollsightError(f"backend={backend!r} is unknown; give {', '.join(get_args(Backend))}.")
        self.objective, self.backend = objective, backend
        self.precondition, self.cross_fit = precondition, cross_fit
        self.metadata = dict(metadata or {})
        self.evaluate, self.on_round = evaluate, on_round
        self.round = 0
        self.scores: dict[str, Scores] = {}
        self.selection: Selection | None = None
        self.snapshot: Snapshot | None = None
        self._rule: Rule | None = None
        self._tracker: EpisodeTracker | None = None
        self._writer: runs.RunWriter | None = None
        self._handle: RemovableHandle | None = None
        self._summary: summary.Summary | None = None
        self._started = self._trained = 0.0
        self._count = 0

    def _on_training_start(self) -> None:
        self._let_go()  # what a `learn` that raised left behind
        model = self._model
        continued = model.num_timesteps > 0
        buffered = model.n_steps * model.n_envs
        self.round = model.num_timesteps // buffered
        if self.run_path is not None:
            self._open_run(continued)
        if self._tracker is None or not continued:
            self._tracker = EpisodeTracker(self._next_episode())
        self._tracker.begin_training(model)
        self._rule = self._rule_for(model, buffered)
        if self.snapshot_every and update_rule(model) is None:
            warnings.warn(
                f"{type(model).__name__}'s update is not one that Rollsight can replay, so no snapshots are taken",
                stacklevel=2,
            )
        buffer.install(model)
        self._handle = model.policy.optimizer.register_step_post_hook(self._count_step)
        if self.round == 0:
            self._evaluate()

    def _on_training_end(self) -> None:
        self._finish_round()
        self._let_go()

    def _let_go(self) -> None:
        """Leave the model as it was found, and the run folder to the next writer."""
        if isinstance(self.model, OnPolicyAlgorithm):
            buffer.remove(self.model)
        if self._handle is not None:
            self._handle.remove()
        if self._writer is not None:
            self._writer.close()
        self._handle = self._writer = self._summary = None

    def _on_rollout_start(self) -> None:
        self._finish_round()
        self._started = time.perf_counter()

    def _on_step(self) -> bool:
        assert self._tracker is not None
        self._tracker.step(self._model, self.locals["rewards"], self.locals["dones"])
        return True

    def _on_rollout_end(self) -> None:
        """The buffer is full and the policy still the one that filled it: score, select, record."""
        assert self._tracker is not None
        model, clock = self._model, summary.Clock(self._started)
        clock.lap("time_collect")
        self.round += 1
        last_dones = getattr(model, "_last_episode_starts")  # noqa: B009
        episodes = self._tracker.end_rollout(model.rollout_buffer.episode_starts, last_dones)
        grid = {"round": np.full_like(episodes.episode, self.round), "episode": episodes.episode}
        translated = translate(model, grid, self.objective)
        self.scores, self.selection, line = {}, None, None
        if self.round % self.every == 0:
            optimizer = model.policy.optimizer if self.precondition else None
            self.scores = {t.name: self._score(translated, t, optimizer) for t in self.targets}
            if self._rule is not None:
                self.selection = self._select(self._rule, next(iter(self.scores.values())))
            clock.lap("time_score")
            weights = None if self.selection is None else translated.per_scored(self.selection.weights)
            line = trust_line(translated.policy, translated.scored, translated.objective, weights, seed=self.round)
            clock.lap("time_trust")
        if self._writer is not None:
            self._writer.write_records(
                self.round, round_columns(self.round, translated, episodes, self.scores, self.selection)
            )
            clock.lap("time_write")
        self._prepare_training(translated)
        valid = int(translated.records.valid_rows.sum())
        self._summary = {
            "timesteps": model.num_timesteps,
            "records": len(translated.records),
            "valid": valid,
            "invalid_rows": len(translated.records) - valid,
            "scored": False,
            "episodes": len(episodes.finished_returns),
            "return_mean": float(episodes.finished_returns.mean()) if len(episodes.finished_returns) else None,
            **(summary.of_scores(next(iter(self.scores.values()))) if self.scores else {}),
            **summary.of_selection(self.selection, valid, "repack" if translated.position is None else "mask"),
            **(summary.of_trust(line) if line is not None else {}),
            **(statistics_entry(model.get_env()) if self._snapshot_due else {}),
            **clock.laps,
            "overhead_s": sum(clock.laps.get(f"time_{name}", 0.0) for name in ("score", "trust", "write")),
        }
        self._log()
        self._trained = time.perf_counter()

    @property
    def _snapshot_due(self) -> bool:
        return self.snapshot_every > 0 and self.round % self.snapshot_every == 0

    @property
    def _model(self) -> OnPolicyAlgorithm:
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise RollsightError(
                f"InfluenceCallback needs an on-policy algorithm with a rollout buffer (PPO, A2C, TRPO, ...), not "
                f"{type(self.model).__name__}."
            )
        return self.model

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

    def _score(self, translated: Translated, target: targets.Target, optimizer: torch.optim.Optimizer | None) -> Scores:
        if isinstance(target, targets.Objective) and target.objective is None:
            target = replace(target, objective=translated.objective)
        scores = score_records(
            translated.policy,
            translated.scored,
            target,
            translated.objective,
            self.backend,
            optimizer,
            cross_fit=self.cross_fit,
            seed=self.round,
            on_policy=True,
            tokens=translated.position is not None,
        )
        return translated.per_step(scores)

    def _select(self, rule: Rule, scores: Scores) -> Selection:
        chosen = rule(scores)
        if chosen.weights.shape != scores.values.shape:
            raise RollsightError(
                f"The selection has weights of shape {tuple(chosen.weights.shape)} for {len(scores)} records; "
                "give one per record."
            )
        if not bool(((chosen.weights == 0) | (chosen.weights == 1)).all()):
            raise RollsightError(
                "Stable-Baselines3 can leave records out but not weigh them; give a rule whose weights are 0 or 1."
            )
        keep = (chosen.weights > 0).cpu().numpy()
        if keep.sum() < min(2, len(keep)):
            raise RollsightError(
                f"The selection leaves {int(keep.sum())} of {len(keep)} records in round {self.round}; keep at least "
                f"2 (min_keep=)."
            )
        if chosen.message and self.verbose:
            print(f"round {self.round}: {chosen.message}")
        if not keep.all():
            kept_by: Any = self._model.rollout_buffer
            if kept_by.keep is not None:
                raise RollsightError(
                    "Two InfluenceCallbacks select records of one model; let one select, and give it a list of targets."
                )
            kept_by.keep = keep
        return chosen

    def _prepare_training(self, translated: Translated) -> None:
        self._before = torch.nn.utils.parameters_to_vector(self._model.policy.parameters()).detach().clone()
        self._count = 0
        if translated.rule is None or not self._snapshot_due:
            return
        weights = None if self.selection is None else self.selection.weights

        def freeze() -> None:
            # Called from inside train(): learning rate, progress and random states are as the update sees them.
            rule = update_rule(self._model)
            assert rule is not None
            optimizer = self._model.policy.optimizer
            self.snapshot = Snapshot.take(self.round, translated.policy, optimizer, translated.records, rule, weights)
            if self._writer is not None:
                self._writer.write_snapshot(self.round, self.snapshot.save)

        self._model.rollout_buffer.on_train = freeze  # type: ignore[attr-defined]

    def _finish_round(self) -> None:
        """After `train()`: what the update did, then the evaluation; the round is complete with its summary."""
        if self._summary is None:
            return
        after = torch.nn.utils.parameters_to_vector(self._model.policy.parameters()).detach()
        self._summary |= {
            "time_train": time.perf_counter() - self._trained,
            "update_norm": float((after - self._before).norm()),
            "approx_kl": self._logged("train/approx_kl", "train/kl_divergence_loss"),
            "optimizer_steps": self._count,
            "learning_rate": float(self._model.policy.optimizer.param_groups[0]["lr"]),
        }
        self._log()
        self._evaluate()
        if self._writer is not None:
            self._writer.write_round(self.round, self._summary)
        if self.on_round is not None:
            self.on_round({"round": self.round, **self._summary})
        self._summary = None

    def _evaluate(self) -> None:
        if self.evaluate is None:
            return
        started = time.perf_counter()
        with streams_of_their_own(self._model.seed or 0, self.round, _EVALUATION):
            returns, lengths = self.evaluate(self._model, self.round)
        if self._writer is not None:
            self._writer.write_evaluation(self.round, returns, lengths)
        if self._summary is not None:
            self._summary |= {"evaluation_return": float(np.mean(returns)), "time_eval": time.perf_counter() - started}

    def _log(self) -> None:
        assert self._summary is not None
        for name in summary.LOGGED:
            if isinstance(value := self._summary.get(name), (int, float)):
                self.logger.record(f"influence/{name.removeprefix('score_')}", value)

    def _logged(self, *names: str) -> float | None:
        values = self.logger.name_to_value
        return next((float(values[name]) for name in names if name in values), None)

    def _count_step(self, *_: Any) -> None:
        self._count += 1

    def _open_run(self, continued: bool) -> None:
        assert self.run_path is not None
        if continued and runs.is_run(self.run_path):
            self._writer = runs.resume(self.run_path)
            self.round = self._writer.last_round
            return
        drop, selection, unit = self._options
        rule = selection if drop is None else f"negative:{drop}"
        described = describe(
            self._model, rule=rule, unit=unit, targets=[t.name for t in self.targets], every=self.every
        )
        self._writer = runs.create(self.run_path, {**described, **self.metadata}, overwrite=self.overwrite)

    def _next_episode(self) -> int:
        if self._writer is None or self._writer.last_round == 0:
            return 0
        ((last,),) = runs.open(self._writer.path).sql("select max(episode) from records").fetchall()
        return int(last) + 1
