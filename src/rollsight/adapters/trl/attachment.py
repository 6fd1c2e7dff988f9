"""`attach`: score every generation batch of a trainer, drop what hurts, keep what was seen."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list
from torch import Tensor

from rollsight import runs, targets
from rollsight.adapters import options, summary
from rollsight.adapters.trl import table
from rollsight.adapters.trl.checks import check_trainer, loss_of
from rollsight.adapters.trl.loss import KEPT, Batch, EmptySteps, leave_out, loss_mask, weighted
from rollsight.adapters.trl.seams import algorithm_of
from rollsight.adapters.trl.translate import objective_of, policy_of, records_of
from rollsight.errors import RollsightError
from rollsight.records import Records
from rollsight.scoring import Scores, score_records
from rollsight.scoring.parallel import Group, gathered_scores
from rollsight.scoring.score import Backend
from rollsight.selection import Rule, Selection

_TARGETS: options.Known = {
    "sequence": targets.Sequence,
    "return": targets.Return,
    "reward": targets.Reward,
    "objective": targets.Objective,
}
_UNITS = {"completion": "record", "group": "group"}
_SEMANTIC = "mask, normalised over the kept"


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
    Nothing happens during evaluation.

    drop:      fraction p of the negative-score units to leave out, lowest first (IIF); None drops nothing. One
               completion always stays.
    target:    "sequence" (`f_seq`), "return" (`f_return`), "reward" (z-scored reward), "objective" (the trainer's own
               loss), a `rollsight.targets` object, or a list of them: the first decides, all are recorded.
    selection: another rule: text ("negative:0.5", "random:0.5"), a `rollsight.selection` rule, or any callable from
               `Scores` to `Selection`; not together with `drop`.
    unit:      what `drop` and a rule given as text drop: "completion", or "group": all completions of a prompt.
    every:     score every k-th generation batch, and keep everything in the others.
    run:       run folder to write; it is continued when training resumes from a checkpoint.
    overwrite: replace an existing run folder.
    backend, cross_fit, leave_self_out, chunk_size: of `score_records`.
    precondition: take the optimiser's second moments into account (`optimizer=` of `score_records`).
    metadata:  further entries for the run folder's `run.json`.

    Raises `RollsightError` for other trainers and for what cannot be scored (see `checks`).
    """
    algorithm = algorithm_of(trainer)
    check_trainer(trainer, algorithm)
    if any(isinstance(getattr(one, "__self__", None), Attachment) for one in vars(trainer).values()):
        raise RollsightError("This trainer has an attachment already: detach() it first, or give it a list of targets.")
    if backend not in get_args(Backend):
        raise RollsightError(f"backend={backend!r} is unknown; give {', '.join(get_args(Backend))}.")
    rule = options.rule_of(drop, selection, unit, seed=trainer.args.seed, floor=1, units=_UNITS)
    chosen = options.targets_of(target, _TARGETS)
    scoring = {
        "backend": backend,
        "cross_fit": cross_fit,
        "leave_self_out": leave_self_out,
        "chunk_size": chunk_size,
    }
    described = {
        "rule": selection if drop is None else f"negative:{drop}",
        "unit": unit,
        "targets": [one.name for one in chosen],
        "every": options.check_every(every),
        **(metadata or {}),
    }
    folder = None if run is None else Path(run)
    return Attachment(trainer, algorithm, chosen, rule, every, scoring, precondition, folder, overwrite, described)


class Attachment:
    """What `attach` puts on a trainer; `detach()` takes it off again.

    round: generation batches so far; scores, selection: of the last one, by target and None where nothing was selected.
    """

    def __init__(
        self,
        trainer: Any,
        algorithm: str,
        chosen: list[targets.Target],
        rule: Rule | None,
        every: int,
        scoring: dict[str, Any],
        precondition: bool,
        folder: Path | None,
        overwrite: bool,
        described: Mapping[str, Any],
    ) -> None:
        self.round = 0
        self.scores: dict[str, Scores] = {}
        self.selection: Selection | None = None
        self._trainer, self._algorithm, self._loss = trainer, algorithm, loss_of(trainer, algorithm)
        self._targets, self._rule, self._every = chosen, rule, every
        self._scoring, self._precondition = scoring, precondition
        self._folder, self._overwrite, self._described = folder, overwrite, described
        self._writer: runs.RunWriter | None = None
        self._host_generate: Callable[[Any], Batch] = trainer._generate_and_score_completions
        self._host_loss: Callable[[Any, Batch], Tensor] = trainer._compute_loss
        self._replaced = {name: vars(trainer).get(name) for name in _HOOKS}
        self._steps = EmptySteps(trainer)
        for name, hook in _HOOKS.items():
            setattr(trainer, name, getattr(self, hook))
        trainer.add_callback(self._steps)

    def detach(self) -> None:
        """Leave the trainer as it was found, and the run folder to the next writer. Detaching twice is harmless."""
        trainer = self._trainer
        for name, hook in _HOOKS.items():
            if vars(trainer).get(name) == getattr(self, hook):
                delattr(trainer, name)
                if (before := self._replaced[name]) is not None:
                    setattr(trainer, name, before)
        if self._steps in trainer.callback_handler.callbacks:
            trainer.remove_callback(self._steps)
        for name in self._columns:
            trainer._logs["extra"].pop(name, None)
        if any(KEPT in batch for batch in trainer._buffered_inputs or ()):
            trainer._buffered_inputs = None  # TRL then generates anew: without the hook, dropped rows would come back
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _generate(self, inputs: Any) -> Batch:
        """In place of the trainer's `_generate_and_score_completions`."""
        trainer = self._trainer
        if not trainer.model.training:
            batch = self._host_generate(inputs)
            everyone = len(batch["advantages"]) * trainer.accelerator.num_processes
            table.add_columns(trainer, dict.fromkeys(self._columns, [None] * everyone))
            return batch
        if self.round == 0:
            self._begin()
        batch = self._host_generate(inputs)
        self.round += 1
        return self._finish(batch)

    def _begin(self) -> None:
        """At the first generation batch, when it is known whether training resumes from a checkpoint."""
        args, steps = self._trainer.args, self._trainer.state.global_step
        self.round = steps * args.gradient_accumulation_steps // (args.steps_per_generation * args.num_iterations)
        if self._folder is None:
            return
        if self._writer is None and self._trainer.accelerator.is_main_process:
            if steps > 0 and runs.is_run(self._folder):
                self._writer = runs.resume(self._folder)
                self.round = self._writer.last_round
            else:
                described = table.describe(self._trainer, self._algorithm, **self._described)
                self._writer = runs.create(self._folder, described, overwrite=self._overwrite)
        self.round = broadcast_object_list([self.round])[0]

    def _finish(self, batch: Batch) -> Batch:
        """The batch is whole and the policy still the one that made it: score, select, record, leave out.

        Rewards, scores, selection and what is reported are those of all processes, records this one's.
        """
        trainer, started = self._trainer, time.perf_counter()
        gather, n = trainer.accelerator.gather, len(batch["advantages"])
        own = slice(trainer.accelerator.process_index * n, (trainer.accelerator.process_index + 1) * n)
        rewards = table.rewards_of(trainer, n * trainer.accelerator.num_processes)
        total = table.total_reward(trainer, rewards).to(batch["advantages"].device)
        records = records_of(batch, total[own], self.round, trainer.num_generations, own.start)
        valid, tokens = gather(records.valid_rows), gather(records.valid.sum(1))
        if missing := int(torch.isnan(total).sum()):
            warnings.warn(
                f"round {self.round}: no reward function gave a number for {missing} of {len(total)} completions; like "
                "TRL's advantages, their scores are 0, and they are kept",
                stacklevel=2,
            )
        self.scores, self.selection = {}, None
        if self.round % self._every == 0 and bool(valid.any()):
            pulls = bool(gather(records.advantages.reshape(n, -1).any(1))[valid].any())
            differ = len(total[valid].unique()) > 1
            for target in self._targets:
                silent = not pulls or (isinstance(target, targets.Reward) and not differ)
                self.scores[target.name] = self._silence(records, target) if silent else self._score(records, target)
            if (group := self._ranks()) is not None:
                self.scores = {name: gathered_scores(one, group)[0] for name, one in self.scores.items()}
            if self._rule is not None:
                self.selection = self._select(self._rule, next(iter(self.scores.values())))
        kept = torch.ones_like(valid)
        if self.selection is not None:
            kept = (self.selection.weights > 0).to(valid.device) | ~valid
        found = {
            "step": trainer.state.global_step,
            "records": len(valid),
            "valid": int(valid.sum()),
            "invalid_rows": int((~valid).sum()),
            "reward_mean": float(total.nanmean()),
            "scored": False,
            **(summary.of_scores(next(iter(self.scores.values()))) if self.scores else {}),
            **summary.of_selection(self.selection, max(int(valid.sum()), 1), _SEMANTIC),
            "kept_tokens_frac": float((tokens * kept).sum() / tokens.sum().clamp(min=1)),
            "time_score": time.perf_counter() - started,
        }
        self._report(found, kept)
        if self._writer is not None:
            columns = table.run_columns(trainer, self.round, tokens, rewards, total, self.scores, kept, valid)
            self._writer.write_records(self.round, columns)
            self._writer.write_round(self.round, found)
        return leave_out(batch, kept, gather(loss_mask(batch).sum(1)), own, self._loss)

    def _score(self, records: Records, target: targets.Target) -> Scores:
        trainer, objective = self._trainer, objective_of(self._trainer, self._algorithm)
        if isinstance(target, targets.Objective) and target.objective is None:
            target = targets.Objective(objective, target.records, target.name)
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer) if self._precondition else None
        return score_records(
            policy_of(trainer),
            records,
            target,
            objective,
            optimizer=optimizer,
            seed=self.round,
            group=self._ranks(),
            **self._scoring,
        )

    def _ranks(self) -> Group | None:
        return dist.group.WORLD if self._trainer.accelerator.num_processes > 1 else None

    def _silence(self, records: Records, target: targets.Target) -> Scores:
        """What scores are where nothing pulls: no advantage, or the same reward for all."""
        zeros = torch.zeros(len(records), device=records.log_probs.device)
        return Scores(zeros, None, records.ids, records.valid_rows, target.name, "raw", "none", "nothing pulls")

    def _select(self, rule: Rule, scores: Scores) -> Selection:
        chosen = rule(scores)
        if chosen.weights.shape != scores.values.shape:
            raise RollsightError(
                f"The selection has weights of shape {tuple(chosen.weights.shape)} for {len(scores)} completions; give "
                f"one per completion."
            )
        if not bool(((chosen.weights == 0) | (chosen.weights == 1)).all()):
            raise RollsightError("Completions are kept or left out; give a rule whose weights are 0 or 1.")
        if not bool(chosen.weights.any()):
            raise RollsightError(
                f"The selection leaves none of the {int(scores.valid.sum())} completions in round {self.round}; keep "
                f"at least one (min_keep=)."
            )
        return chosen

    def _report(self, found: Mapping[str, Any], kept: Tensor) -> None:
        """Metrics to the trainer's log and columns to its completions table."""
        trainer = self._trainer
        for name in (*summary.LOGGED, "kept_tokens_frac"):
            if isinstance(value := found.get(name), (int, float)):
                trainer._metrics["train"][f"influence/{name.removeprefix('score_')}"].append(float(value))
        columns: dict[str, list[Any]] = dict.fromkeys(self._columns, [None] * len(kept))
        columns |= {f"influence_{name}": one.values.tolist() for name, one in self.scores.items()}
        table.add_columns(trainer, columns | {"influence_kept": kept.tolist()})

    @property
    def _columns(self) -> list[str]:
        return [*(f"influence_{target.name}" for target in self._targets), "influence_kept"]

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        """In place of the trainer's `_compute_loss`."""
        trainer = self._trainer
        if KEPT not in inputs:
            self._steps.kept += 1
            return self._host_loss(model, inputs)
        self._steps.kept += int(inputs[KEPT].sum())
        batch, scale = weighted(inputs, self._loss)
        beta = trainer.beta
        trainer.beta = beta * scale
        try:
            return self._host_loss(model, batch)
        finally:
            trainer.beta = beta


_HOOKS = {"_generate_and_score_completions": "_generate", "_compute_loss": "_compute_loss"}
