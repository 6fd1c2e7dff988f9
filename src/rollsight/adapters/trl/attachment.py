"""`attach`: score every generation batch of a trainer, drop what hurts, keep what was seen."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from rollsight import distributed, runs, targets
from rollsight.adapters import findings, options
from rollsight.adapters.top_records import top_records
from rollsight.adapters.trl import in_backward, start, table
from rollsight.adapters.trl.batch import Seen, own_records, seen
from rollsight.adapters.trl.checks import check_scoring, check_trainer, loss_of
from rollsight.adapters.trl.folder import check_metadata, in_main_process, open_writer
from rollsight.adapters.trl.freezing import frozen_round, trained
from rollsight.adapters.trl.in_backward import ROWS, Way, Window
from rollsight.adapters.trl.loss import KEPT, Batch, EmptySteps, leave_out, loss_mask, loss_of_kept
from rollsight.adapters.trl.private_api import algorithm_of
from rollsight.adapters.trl.scoring import Scoring, selected
from rollsight.doctor.live import LiveDoctor
from rollsight.scoring import Scores
from rollsight.scoring.in_backward import RecordGradients
from rollsight.scoring.score import Backend
from rollsight.selection import Rule, Selection
from rollsight.trackers import Trackers
from rollsight.watching import Watch

_TARGETS: options.Known = {
    "sequence": targets.Sequence,
    "return": targets.Return,
    "reward": targets.Reward,
    "objective": targets.Objective,
}
_UNITS = {"completion": "record", "group": "group"}
Result = TypeVar("Result")


def attach(
    trainer: Any,
    drop: float | None = None,
    target: str | targets.Target | Sequence[str | targets.Target] = "sequence",
    selection: str | Rule | None = None,
    unit: str = "completion",
    every: int = 1,
    run: str | Path | None = None,
    overwrite: bool = False,
    backend: Backend = "auto",
    precondition: bool = False,
    cross_fit: bool = False,
    leave_self_out: bool = False,
    chunk_size: int | None = None,
    doctor: bool = False,
    snapshots: str = "auto",
    metadata: Mapping[str, Any] | None = None,
    scoring: Way = "auto",
    gradient_bytes: int = 2**31,
) -> Attachment:
    """Score every completion that `trainer`, a TRL GRPOTrainer or RLOOTrainer, generates for training and, where asked,
    leave the harmful ones out of its updates. Call it before `trainer.train()`; `attach(trainer)` only scores, and
    training is then bit-identical to training without it.

    Scores are taken at the policy that made a generation batch, and serve all its updates: in the backward of training
    (`scoring`), or in a pass of their own, before the batch is shuffled and split. Advantages are never recomputed: a
    group's baseline counts dropped completions too. Nothing happens during evaluation. Once training has begun, what
    fails in scoring, selecting, logging or recording is a warning, once per kind: such a round keeps every completion,
    and training goes on.

    drop:      fraction p of the negative-score units to leave out, lowest first (IIF); None drops nothing. One
               completion always stays.
    target:    "sequence" (`f_seq`), "return" (`f_return`), "reward" (z-scored reward), "objective" (the trainer's own
               loss), a `rollsight.targets` object, or a list of them: the first decides, all are recorded.
    selection: another rule: text ("negative:0.5", "random:0.5"), a `rollsight.selection` rule, or any callable from
               `Scores` to `Selection` (called in the main process); not together with `drop`.
    unit:      what `drop` and a rule given as text drop: "completion", or "group": all completions of a prompt.
    every:     score every k-th generation batch, and keep everything in the others.
    run:       run folder to write. Where training resumes from a checkpoint it is continued after the checkpoint's
               round, and later rounds are replaced; so does a second `train()` with one attachment, after the last.
    overwrite: replace an existing run folder, where training starts anew.
    backend, cross_fit, leave_self_out, chunk_size: of `score_records`.
    precondition: take the optimiser's second moments into account (`optimizer=` of `score_records`).
    doctor:    look for known faults in the batches while they come (`rollsight doctor`): each finding is a warning
               once, and a row of the run folder's table `findings`. Takes at most a hundredth of the time.
    snapshots: "all", "every:K" or "none": generation batches of the run folder that are frozen, so that `rollsight
               culprits` can score and replay them; "auto": all where one takes at most 16 MiB (the trained parameters
               and Adam's moments). With several processes there are none.
    metadata:  further entries for the run folder's `run.json`.
    scoring:   "in_backward": the completions' own gradients are captured in the backward of training, scores and
               selection made of them before the optimiser's step, which then takes the sum of the kept ones. It needs
               one optimiser step per generation batch and trainable layers that are `nn.Linear`, as a LoRA adapter's
               are, and costs a few per cent of training and `gradient_bytes`. "own_pass": a forward and backward more.
               "auto": the first where it applies (docs/trl.md says where), else the second.
    gradient_bytes: the most that a process's completions' own gradients may take, 4 bytes a completion and trainable
               parameter; where it is not enough, "auto" scores in a pass of its own.

    A trainer has one attachment: a second takes the place of the first, with a warning. Raises `RollsightError` for
    other trainers, for wrong settings and for what cannot be scored (see `checks`); a few made-up completions tell.
    """
    algorithm = algorithm_of(trainer)
    rule = options.rule_of(drop, selection, unit, seed=trainer.args.seed, floor=1, units=_UNITS)
    chosen = options.targets_of(target, _TARGETS)
    check_trainer(trainer, algorithm)
    settings = {
        "backend": backend,
        "cross_fit": cross_fit,
        "leave_self_out": leave_self_out,
        "chunk_size": chunk_size,
    }
    how = Scoring(algorithm, chosen, settings, precondition)
    described = {
        "rule": selection if drop is None else f"negative:{drop}",
        "unit": unit,
        "targets": [one.name for one in chosen],
        "every": options.check_every(every),
        "scoring": scoring,
    }
    check_metadata(metadata or {}, {**table.describe(trainer, algorithm), **described})
    folder = options.run_folder(run)
    between = options.frozen_interval_of(snapshots, trained(trainer.model).values())
    between = 0 if trainer.accelerator.num_processes > 1 else between
    check_scoring(trainer, how)
    captured = in_backward.chosen(scoring, trainer, how, gradient_bytes)
    described["scoring"] = "in_backward" if captured else "own_pass"
    earlier = (getattr(hook, "__self__", None) for hook in vars(trainer).values())
    if (attached := next((one for one in earlier if isinstance(one, Attachment)), None)) is not None:
        warnings.warn("this trainer had an attachment already, which the new one replaces", stacklevel=2)
        attached.detach()
    about = {**described, **(metadata or {})}
    return Attachment(trainer, how, rule, every, folder, overwrite, doctor, between, captured, about)


class Attachment:
    """What `attach` puts on a trainer; `detach()` takes it off again.

    round: generation batches so far; scores, selection: of the last one, by target and None where nothing was selected.
    """

    def __init__(
        self,
        trainer: Any,
        scoring: Scoring,
        rule: Rule | None,
        every: int,
        folder: Path | None,
        overwrite: bool,
        doctor: bool,
        freeze_every: int,
        captured: bool,
        described: Mapping[str, Any],
    ) -> None:
        self.round = 0
        self.scores: dict[str, Scores] = {}
        self.selection: Selection | None = None
        self._trainer, self._scoring, self._loss = trainer, scoring, loss_of(trainer, scoring.algorithm)
        self._rule, self._every, self._freeze_every = rule, every, freeze_every
        self._folder, self._overwrite, self._described = folder, overwrite, described
        self._watch, self._trackers = Watch(), Trackers()
        watched = doctor and trainer.accelerator.is_main_process
        about = {**table.describe(trainer, scoring.algorithm), **described}
        self._doctor = LiveDoctor(about, folder) if watched else None
        self._captured, self._window = captured, cast(Window | None, None)
        self._rewards: Tensor | None = None
        self._begun = self._opened = self._detached = False
        self._writer: runs.RunWriter | None = None
        self._host: dict[str, Callable[..., Any]] = {name: getattr(trainer, name) for name in _HOOKS}
        self._replaced = {name: vars(trainer).get(name) for name in _HOOKS}
        for name, hook in _HOOKS.items():
            setattr(trainer, name, getattr(self, hook))
        self._steps, self._start = EmptySteps(trainer), start.Start(self._begin)
        trainer.add_callback(self._steps)
        trainer.add_callback(self._start)

    def detach(self) -> None:
        """Leave the trainer as it was found, and the run folder to the next writer. Detaching twice is harmless."""
        trainer, self._detached = self._trainer, True
        for name, hook in _HOOKS.items():
            if vars(trainer).get(name) == getattr(self, hook):
                delattr(trainer, name)
                if (before := self._replaced[name]) is not None:
                    setattr(trainer, name, before)
        for callback in (self._steps, self._start):
            if callback in trainer.callback_handler.callbacks:
                trainer.remove_callback(callback)
        for name in self._scoring.columns:
            trainer._logs["extra"].pop(name, None)
        if any(KEPT in batch for batch in trainer._buffered_inputs or ()):
            trainer._buffered_inputs = None  # TRL then generates anew: without the hook, dropped rows would come back
        self._end()

    def _train(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the trainer's `train`: however it ends, the run folder is left to the next writer."""
        try:
            return self._host["train"](*args, **kwargs)
        finally:
            self._end()

    def _end(self) -> None:
        self._begun = False
        self._closed_window()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _begin(self) -> None:
        """When training starts, and it is known whether it resumes from a checkpoint: the round, and the run folder."""
        self._begun, self._steps.kept = True, 0
        trainer, step = self._trainer, self._trainer.state.global_step
        if step > 0:
            self.round = start.round_of_checkpoint(trainer)
        if self._folder is None or (self._writer is not None and self._writer.last_round == self.round):
            return
        described = {**table.describe(trainer, self._scoring.algorithm), **self._described}
        after = None if step == 0 and not self._opened else self.round
        open_here = partial(open_writer, self._folder, described, after=after, step=step, overwrite=self._overwrite)
        self._writer = in_main_process(trainer, open_here)
        self._opened = True

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """In place of the trainer's `_calculate_rewards`: its log is by name, and names may repeat."""
        rewards: Tensor = self._host["_calculate_rewards"](*args, **kwargs)
        self._rewards = rewards
        return rewards

    def _generate(self, inputs: Any) -> Batch:
        """In place of the trainer's `_generate_and_score_completions`."""
        trainer, host = self._trainer, self._host["_generate_and_score_completions"]
        batch: Batch
        if self._detached:  # another hook stands before this one and still calls it
            batch = host(inputs)
            return batch
        if not trainer.model.training:
            batch = host(inputs)
            empty = [None] * (len(batch["advantages"]) * trainer.accelerator.num_processes)
            self._attempt("columns", lambda: table.add_columns(trainer, dict.fromkeys(self._scoring.columns, empty)))
            return batch
        if not self._begun:
            self._begin()
        self._rewards = None
        batch = host(inputs)
        self.round += 1
        start.keep_round(trainer.state, self.round)
        return self._finish(batch)

    def _finish(self, batch: Batch) -> Batch:
        """The batch is whole and the policy still the one that made it: score, select, record, leave out.

        Rewards, scores, selection and what is reported are those of all processes, records this one's.
        """
        trainer, started = self._trainer, time.perf_counter()
        self.scores, self.selection = {}, None
        self._watch.begin(self.round)
        read = self._attempt("records", lambda: own_records(trainer, batch, self._rewards, self.round), together=True)
        if read is None or self._rewards is None:
            return batch
        found = seen(trainer, *read, self._rewards)
        self._name_missing(found)
        tokens = trainer.accelerator.gather(loss_mask(batch).sum(1))
        scored = self.round % self._every == 0 and bool(found.valid.any())
        if scored and self._captured and found.pulls and in_backward.whole(trainer):
            made = partial(Window.of, trainer, found, batch, tokens, started)
            self._window = self._attempt(f"memory for {_GRADIENTS}", made, together=True)
            if self._window is not None:
                self._window.gradients.open()
                return self._window.marked()
            self._captured = False
        if scored:
            self.selection = self._score(found)
        kept = self._kept(found)
        self._report(found, kept, time.perf_counter() - started)
        return leave_out(batch, kept, tokens, found.own, self._loss)

    def _training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """In place of the trainer's `training_step`: after the last of a step, before the gradient is clipped."""
        loss: Tensor = self._host["training_step"](*args, **kwargs)
        if self._window is not None and self._trainer.accelerator.sync_gradients:
            self._finish_in_backward(cast(Window, self._closed_window()))
        return loss

    def _finish_in_backward(self, window: Window) -> None:
        """The gradients of the whole batch are there and the policy still the one that made it: the same as `_finish`,
        and the gradient of the kept ones for the optimiser's step. Nothing left out: training's own, untouched."""
        started, found = time.perf_counter(), window.found
        if self._attempt(f"{_GRADIENTS}{_SO_KEPT}", window.checked, together=True) is None:
            self._captured = False
        else:
            self.selection = self._score(found, window.gradients)
        kept = self._kept(found)
        if not bool(kept.all()):
            of_kept = partial(window.gradient_of_kept, kept, self._loss)
            gradient = self._attempt(f"gradient of the kept completions{_SO_KEPT}", of_kept, together=True)
            if gradient is None:
                self.selection = None
                kept = self._kept(found)
            else:
                window.train_with(gradient)
        self._report(found, kept, window.seconds + window.gradients.seconds + time.perf_counter() - started)

    def _closed_window(self) -> Window | None:
        window, self._window = self._window, None
        if window is not None:
            window.gradients.close()
        return window

    def _kept(self, found: Seen) -> Tensor:
        """(n,) of all processes' completions, those that are trained on."""
        if self.selection is None:
            return torch.ones_like(found.valid)
        return (self.selection.weights > 0).to(found.valid.device) | ~found.valid

    def _report(self, found: Seen, kept: Tensor, seconds: float) -> None:
        """The round, to the trainer's log and tables and to the run folder."""
        trainer, about = self._trainer, (found, self._leading, self.selection, kept)
        summed = self._attempt("summary", lambda: table.summary_of(trainer, *about, seconds))
        if summed is not None:
            self._attempt("metrics", lambda: table.report(trainer, summed, self._scoring.columns, self.scores, kept))
            self._attempt("record in the run folder", lambda: self._record(summed, found, kept))

    def _attempt(self, part: str, call: Callable[[], Result], together: bool = False) -> Result | None:
        """The call's result, None where it fails: with a warning, so that training goes on. together: every process
        makes the call, and it fails in all of them where it does in one."""

        def by_all() -> Result:
            with distributed.together(distributed.everyone()):
                return call()

        return self._watch.attempt(part, by_all if together else call)

    def _score(self, found: Seen, gradients: RecordGradients | None = None) -> Selection | None:
        """Scores by every target, and the selection by the first one's; None without a rule or those scores."""
        trainer, scoring = self._trainer, self._scoring
        for target in scoring.targets:
            of_it = partial(scoring.of, trainer, found, target, self.round, gradients)
            kept = _SO_KEPT if self._rule is not None and target is scoring.targets[0] else ""
            if (scores := self._attempt(f"scores of {target.name!r}{kept}", of_it, together=True)) is not None:
                self.scores[target.name] = scores
        rule, leading = self._rule, self._leading
        if rule is None or leading is None:
            return None
        # Not chosen by each process: a rule may draw random numbers.
        choose = partial(distributed.from_first, partial(selected, rule, leading), distributed.everyone())
        return self._attempt(f"selection{_SO_KEPT}", choose, together=True)

    @property
    def _leading(self) -> Scores | None:
        """The scores that decide the selection."""
        return self.scores.get(self._scoring.targets[0].name)

    def _name_missing(self, found: Seen) -> None:
        if missing := int((~torch.isfinite(found.total)).sum()):
            self._watch.warn(
                "rewards",
                f"no reward function gave a number for {missing} of {len(found.total)} completions; like TRL's "
                "advantages, the scores of such completions are 0, and they are kept",
            )

    def _record(self, summed: Mapping[str, Any], found: Seen, kept: Tensor) -> None:
        """The round, to the run folder."""
        trainer, writers = self._trainer, table.event_writers(self._trainer)
        shown = trainer.accelerator.is_main_process and self._trackers.wanted(writers)
        if self._writer is None and self._doctor is None and not shown:
            return
        reason = "" if self.selection is None else self.selection.reason
        columns = table.run_columns(trainer, self.round, found, self.scores, reason, kept)
        if self._doctor is not None:
            self._attempt("records for the doctor", partial(self._doctor.keep, self.round, columns))
        findings.report(self._doctor, self.round, summed, self._watch, self._writer)
        if self._writer is not None:
            self._writer.write_records(self.round, columns)
            if self._freeze_every and self.round % self._freeze_every == 0:
                self._attempt("frozen round", partial(self._freeze, self._writer, found, kept))
            self._writer.write_round(self.round, {**summed, "warnings": self._watch.said})
        if shown:
            self._attempt("records for trackers", lambda: self._trackers.keep(top_records(columns, {})))
            self._trackers.log_table(self.round, trainer.state.global_step, writers)

    def _freeze(self, writer: runs.RunWriter, found: Seen, kept: Tensor) -> None:
        """The round as it is before its update, to the run folder."""
        about = (self._scoring.algorithm, self._loss, found.records, kept & found.valid, self.round)
        writer.write_policy(self.round, frozen_round(self._trainer, *about).save)

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        """In place of the trainer's `_compute_loss`."""
        host = self._host["_compute_loss"]
        if ROWS in inputs:
            rows, inputs = inputs[ROWS], {name: value for name, value in inputs.items() if name != ROWS}
            if self._window is not None:
                self._window.gradients.begin(rows)
        if KEPT not in inputs:
            self._steps.kept += 1
            loss: Tensor = host(model, inputs)
            return loss
        self._steps.kept += int(inputs[KEPT].sum())
        return loss_of_kept(self._trainer, host, model, inputs, self._loss)

    def _log_probs(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the trainer's `_get_per_token_logps_and_entropies`."""
        found = self._host["_get_per_token_logps_and_entropies"](*args, **kwargs)
        if self._window is not None and torch.is_grad_enabled():
            self._window.gradients.watch(found[0])
        return found


_GRADIENTS = "gradients in training's backward, so later rounds are scored in a pass of their own"
_SO_KEPT = ", so every completion is kept"
_HOOKS = {
    "train": "_train",
    "_calculate_rewards": "_calculate_rewards",
    "_generate_and_score_completions": "_generate",
    "_compute_loss": "_compute_loss",
    "_get_per_token_logps_and_entropies": "_log_probs",
    "training_step": "_training_step",
}
