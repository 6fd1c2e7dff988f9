"""`attach`: score every generation batch of a trainer, drop what hurts, keep what was seen."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import TrainerCallback

from rollsight import runs, targets
from rollsight.adapters import options, summary
from rollsight.adapters.trl import table
from rollsight.adapters.trl.batch import Seen, own_records, seen
from rollsight.adapters.trl.checks import check_scoring, check_trainer, loss_of
from rollsight.adapters.trl.folder import check_metadata, open_writer
from rollsight.adapters.trl.loss import KEPT, Batch, EmptySteps, leave_out, loss_mask, weighted
from rollsight.adapters.trl.scoring import Scoring, ranks_of, selected
from rollsight.adapters.trl.seams import algorithm_of
from rollsight.adapters.trl.watching import Watching
from rollsight.errors import OptionError, RollsightError
from rollsight.records import Records
from rollsight.scoring import Scores
from rollsight.scoring.parallel import Group
from rollsight.scoring.score import Backend
from rollsight.selection import Rule, Selection

_TARGETS: options.Known = {
    "sequence": targets.Sequence,
    "return": targets.Return,
    "reward": targets.Reward,
    "objective": targets.Objective,
}
_UNITS = {"completion": "record", "group": "group"}
_STATE = "Rollsight"  # where the trainer's state, which its checkpoints hold, keeps the round


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
    metadata: Mapping[str, Any] | None = None,
) -> Attachment:
    """Score every completion that `trainer`, a TRL GRPOTrainer or RLOOTrainer, generates for training and, where asked,
    leave the harmful ones out of its updates. Call it before `trainer.train()`; `attach(trainer)` only scores, and
    training is then bit-identical to training without it.

    Scores are taken when a generation batch is complete, before it is shuffled and split, at the policy that made it;
    they serve all its updates. Advantages are never recomputed: a group's baseline counts dropped completions too.
    Nothing happens during evaluation. Once training has begun, what fails in scoring, selecting, logging or recording
    is a warning, once per kind: such a round keeps every completion, and training goes on.

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
    metadata:  further entries for the run folder's `run.json`.

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
    scoring = Scoring(algorithm, chosen, settings, precondition)
    described = {
        "rule": selection if drop is None else f"negative:{drop}",
        "unit": unit,
        "targets": [one.name for one in chosen],
        "every": options.check_every(every),
    }
    check_metadata(metadata or {}, {**table.describe(trainer, algorithm), **described})
    if run is not None and (not isinstance(run, (str, Path)) or not str(run)):
        raise OptionError("{run} is not a folder; give the path of the run to write.", run=run)
    check_scoring(trainer, scoring)
    for hook in list(vars(trainer).values()):
        earlier = getattr(hook, "__self__", None)
        if isinstance(earlier, Attachment):
            warnings.warn("this trainer had an attachment already, which the new one replaces", stacklevel=2)
            earlier.detach()
            break
    folder = None if run is None else Path(run)
    return Attachment(trainer, scoring, rule, every, folder, overwrite, {**described, **(metadata or {})})


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
        described: Mapping[str, Any],
    ) -> None:
        self.round = 0
        self.scores: dict[str, Scores] = {}
        self.selection: Selection | None = None
        self._trainer, self._scoring, self._loss = trainer, scoring, loss_of(trainer, scoring.algorithm)
        self._rule, self._every = rule, every
        self._folder, self._overwrite, self._described = folder, overwrite, described
        self._watching, self._rewards = Watching(), None
        self._begun = self._opened = self._detached = False
        self._writer: runs.RunWriter | None = None
        self._host = {name: getattr(trainer, name) for name in _HOOKS}
        self._replaced = {name: vars(trainer).get(name) for name in _HOOKS}
        for name, hook in _HOOKS.items():
            setattr(trainer, name, getattr(self, hook))
        self._steps, self._start = EmptySteps(trainer), _Start(self._begin)
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
        for name in self._columns:
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
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _begin(self) -> None:
        """When training starts, and it is known whether it resumes from a checkpoint: the round, and the run folder."""
        self._begun, self._steps.kept = True, 0
        trainer, step = self._trainer, self._trainer.state.global_step
        if step > 0:
            self.round = _round_of_checkpoint(trainer)
        if self._folder is None or (self._writer is not None and self._writer.last_round == self.round):
            return
        failure: Exception | None = None
        if trainer.accelerator.is_main_process:
            described = {**table.describe(trainer, self._scoring.algorithm), **self._described}
            fresh = step == 0 and not self._opened
            try:
                self._writer = open_writer(
                    self._folder, described, after=None if fresh else self.round, step=step, overwrite=self._overwrite
                )
            except Exception as error:
                failure = error
        told = broadcast_object_list([failure and str(failure)])[0]
        if failure is not None:
            raise failure
        if told is not None:
            raise RollsightError(told)
        self._opened = True

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """In place of the trainer's `_calculate_rewards`: its log is by name, and names may repeat."""
        self._rewards = self._host["_calculate_rewards"](*args, **kwargs)
        return self._rewards

    def _generate(self, inputs: Any) -> Batch:
        """In place of the trainer's `_generate_and_score_completions`."""
        trainer, host = self._trainer, self._host["_generate_and_score_completions"]
        if self._detached:  # another hook stands before this one and still calls it
            return host(inputs)
        if not trainer.model.training:
            batch = host(inputs)
            everyone = len(batch["advantages"]) * trainer.accelerator.num_processes
            with self._watching.survives("logging", "its columns are missing in the completions table"):
                table.add_columns(trainer, dict.fromkeys(self._columns, [None] * everyone))
            return batch
        if not self._begun:
            self._begin()
        self._rewards = None
        batch = host(inputs)
        self.round += 1
        trainer.state.stateful_callbacks[_STATE] = {"args": {}, "attributes": {"round": self.round}}
        return self._finish(batch)

    def _finish(self, batch: Batch) -> Batch:
        """The batch is whole and the policy still the one that made it: score, select, record, leave out.

        Rewards, scores, selection and what is reported are those of all processes, records this one's.
        """
        trainer, started, group = self._trainer, time.perf_counter(), ranks_of(self._trainer)
        self.scores, self.selection = {}, None
        self._watching.begin(self.round)
        read: tuple[Records, slice] | None = None
        with self._watching.survives("reading the generation batch", _KEPT_ALL, group):
            read = own_records(trainer, batch, self._rewards, self.round)
        if read is None or self._rewards is None:
            return batch
        all_seen = seen(trainer, *read, self._rewards)
        self._name_missing(all_seen)
        if self.round % self._every == 0 and bool(all_seen.valid.any()):
            self._score(all_seen, group)
        kept = torch.ones_like(all_seen.valid)
        if self.selection is not None:
            kept = (self.selection.weights > 0).to(kept.device) | ~all_seen.valid
        with self._watching.survives("logging", "its metrics are missing"):
            found = self._summary(all_seen, kept, started)
            self._report(found, kept)
            self._record(found, all_seen, kept)
        return leave_out(batch, kept, trainer.accelerator.gather(loss_mask(batch).sum(1)), all_seen.own, self._loss)

    def _score(self, all_seen: Seen, group: Group | None) -> None:
        trainer, scoring = self._trainer, self._scoring
        for target in scoring.targets:
            instead = "it has no such scores"
            if self._rule is not None and target is scoring.targets[0]:
                instead = _KEPT_ALL
            with self._watching.survives(f"scoring {target.name!r}", instead, group):
                found = scoring.of(trainer, all_seen, target, self.round)
                self.scores[target.name] = found
        deciding = self.scores.get(scoring.targets[0].name)
        if self._rule is None or deciding is None:
            return
        chosen: list[Selection | None] = [None]
        with self._watching.survives("selecting", _KEPT_ALL, group):
            if trainer.accelerator.is_main_process:
                chosen = [selected(self._rule, deciding)]
        self.selection = broadcast_object_list(chosen)[0]

    def _name_missing(self, all_seen: Seen) -> None:
        if missing := int((~torch.isfinite(all_seen.total)).sum()):
            self._watching.warn(
                "missing rewards",
                f"no reward function gave a number for {missing} of {len(all_seen.total)} completions; like TRL's "
                "advantages, the scores of such completions are 0, and they are kept",
            )

    def _summary(self, all_seen: Seen, kept: Tensor, started: float) -> summary.Summary:
        valid, tokens, total = all_seen.valid, all_seen.tokens, all_seen.total
        return {
            "step": self._trainer.state.global_step,
            "records": len(valid),
            "valid": int(valid.sum()),
            "invalid_rows": int((~valid).sum()),
            "reward_mean": float(total.nanmean()),
            "scored": False,
            **(summary.of_scores(next(iter(self.scores.values()))) if self.scores else {}),
            **summary.of_selection(self.selection, max(int(valid.sum()), 1), _SEMANTIC),
            "kept_tokens_frac": float((tokens * kept).sum() / tokens.sum().clamp(min=1)),
            "failed": "; ".join(self._watching.failed) or None,
            "time_score": time.perf_counter() - started,
        }

    def _report(self, found: Mapping[str, Any], kept: Tensor) -> None:
        """Metrics to the trainer's log and columns to its completions table."""
        trainer = self._trainer
        for name in (*summary.LOGGED, "kept_tokens_frac"):
            if isinstance(value := found.get(name), (int, float)):
                trainer._metrics["train"][f"influence/{name.removeprefix('score_')}"].append(float(value))
        columns: dict[str, list[Any]] = dict.fromkeys(self._columns, [None] * len(kept))
        columns |= {f"influence_{name}": one.values.tolist() for name, one in self.scores.items()}
        table.add_columns(trainer, columns | {"influence_kept": kept.tolist()})

    def _record(self, found: Mapping[str, Any], all_seen: Seen, kept: Tensor) -> None:
        """The round, to the run folder."""
        if self._writer is None:
            return
        with self._watching.survives("recording", "it is missing in the run folder"):
            columns = table.run_columns(self._trainer, self.round, all_seen, self.scores, kept)
            self._writer.write_records(self.round, columns)
            self._writer.write_round(self.round, found)

    @property
    def _columns(self) -> list[str]:
        return [*(f"influence_{target.name}" for target in self._scoring.targets), "influence_kept"]

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        """In place of the trainer's `_compute_loss`."""
        trainer, host = self._trainer, self._host["_compute_loss"]
        if KEPT not in inputs:
            self._steps.kept += 1
            return host(model, inputs)
        self._steps.kept += int(inputs[KEPT].sum())
        batch, scale = weighted(inputs, self._loss)
        beta = trainer.beta
        trainer.beta = beta * scale
        try:
            return host(model, batch)
        finally:
            trainer.beta = beta


class _Start(TrainerCallback):
    """Tells when training starts."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begin()


def _round_of_checkpoint(trainer: Any) -> int:
    """Generation batches before the checkpoint that training resumes from: its own count, or what its steps took."""
    args, state = trainer.args, trainer.state
    kept = (state.stateful_callbacks or {}).get(_STATE)
    if kept is not None:
        return int(kept["attributes"]["round"])
    micro_batches = state.global_step * args.gradient_accumulation_steps
    return math.ceil(micro_batches / (args.steps_per_generation * args.num_iterations))


_SEMANTIC = "mask, normalised over the kept"
_KEPT_ALL = "it keeps every completion, without scores"
_HOOKS = {
    "train": "_train",
    "_calculate_rewards": "_calculate_rewards",
    "_generate_and_score_completions": "_generate",
    "_compute_loss": "_compute_loss",
}
