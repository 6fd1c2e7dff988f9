"""A training run from plain settings: model, prompts and reward by name, rounds into a run folder, resumable."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from accelerate import PartialState

from rollsight import distributed, runs
from rollsight.adapters import findings
from rollsight.adapters.options import frozen_interval_of
from rollsight.adapters.top_records import top_records
from rollsight.doctor.live import LiveDoctor
from rollsight.errors import RollsightError
from rollsight.trackers import Trackers
from rollsight.training.language import models, prompts, rewards, saving, sources
from rollsight.training.language.columns import round_columns, round_summary
from rollsight.training.language.policy import ActorCritic
from rollsight.training.language.ppo import Follow, LanguagePPO
from rollsight.training.language.prompts import Prompt
from rollsight.training.language.settings import Options, RunSettings, Sampling
from rollsight.training.language.token_texts import TokenTexts

__all__ = ["Options", "RunSettings", "Sampling", "prepare", "restore", "resume", "save", "settings_of", "train"]

Report = Callable[[Mapping[str, Any]], None]
Clock = Callable[[], float]
_FORMAT = 1


def train(
    settings: RunSettings,
    out: Path,
    *,
    overwrite: bool = False,
    on_round: Report | None = None,
    clock: Clock = time.perf_counter,
    follow: Follow | None = None,
) -> None:
    """Train into the new run folder `out`; on_round is called with each finished round's summary, whose seconds are by
    `clock`, `follow` with how far each phase of it is.

    Raises:
        RollsightError: a name is wrong, the model does not fit, the folder is taken, or a round cannot go on (its
        message says which rounds are kept).
    """
    settings = _with_whole_path(settings)
    frozen_interval_of(settings.snapshots, ())  # says whether it is known, before anything is loaded
    if settings.save is not None and distributed.rank() == 0:
        saving.check_folder(settings.save, overwrite)
    trainer, held_out = prepare(settings)
    _watched(trainer, clock, follow)
    if distributed.rank():
        return _rounds(trainer, settings, held_out, None, on_round)
    described = {
        "host": "rollsight",
        "algo": "ppo",
        "env": f"{settings.model}, {settings.prompts}, {settings.reward}",
        "arm": settings.arm,
        "seed": settings.seed,
        "trainable_parameters": sum(p.numel() for p in trainer.policy.trainable().values()),
        "precision": str(trainer.policy.language_model.dtype).removeprefix("torch."),
        "processes": distributed.size(),
        "prompts_to_train_on": len(trainer.prompts),
        "run_settings": _stored(settings),
    }
    with runs.create(out, described, overwrite=overwrite) as writer:
        return _rounds(trainer, settings, held_out, writer, on_round)


def resume(
    out: Path,
    rounds: int | None = None,
    on_round: Report | None = None,
    clock: Clock = time.perf_counter,
    *,
    save: str | None = None,
    save_every: int | None = None,
    follow: Follow | None = None,
) -> RunSettings:
    """Continue the run in `out` with its own settings, up to `rounds` rounds in all (None: the number it was planned
    with). It ends as it would have without the interruption. save, save_every: None stands for the run's own too.

    Raises:
        RollsightError: as `train`; the folder is not a run of this trainer, or its checkpoint is missing or damaged.
    """
    settings = continued(out, rounds, save, save_every)
    if settings.save is not None and distributed.rank() == 0:
        saving.check_folder(settings.save, overwrite=True)
    trainer, held_out = prepare(settings)
    _watched(trainer, clock, follow)
    writer = runs.resume(out) if distributed.rank() == 0 else None
    try:
        done = max(runs.open(out).rounds, default=0)
        if done:
            restore(trainer, checkpoint_path(runs.open(out), done))
        _rounds(trainer, settings, held_out, writer, on_round)
    finally:
        if writer is not None:
            writer.close()
    return settings


def continued(
    out: Path, rounds: int | None = None, save: str | None = None, save_every: int | None = None
) -> RunSettings:
    """The settings that `resume` with these arguments goes on with."""
    settings = settings_of(out)
    return _with_whole_path(
        replace(
            settings,
            rounds=settings.rounds if rounds is None else rounds,
            save=settings.save if save is None else save,
            save_every=settings.save_every if save_every is None else save_every,
        )
    )


def settings_of(out: Path) -> RunSettings:
    """The settings that the run in `out` was started with."""
    stored: Any = runs.open(out).metadata.get("run_settings")
    try:
        groups = {"options": Options(**stored["options"]), "sampling": Sampling(**stored.get("sampling", {}))}
        return RunSettings(**{**stored, **groups})
    except (TypeError, KeyError, AttributeError) as error:
        raise RollsightError(
            f"{out} is not a run of a language model: name one that `rollsight rlhf` started"
        ) from error


def prepare(settings: RunSettings) -> tuple[LanguagePPO, tuple[Prompt, ...]]:
    """The trainer before its first round, on its device, and the held-out prompts."""
    cpu = not torch.cuda.is_available()
    device = PartialState(cpu=cpu).device  # joins the other processes where a launcher started several
    reward = rewards.load(settings.reward, settings.reward_reads)
    found = sources.load(settings.prompts, settings.split)
    rewards.check(reward, found)
    loaded = models.load(settings.model, precision=settings.precision, full=settings.lora_rank == 0, seed=settings.seed)
    found = prompts.through_template(found, loaded.tokenizer, settings.chat, settings.system)
    found_fitting = prompts.fitting(found, loaded, settings.options.max_new_tokens, settings.max_prompt_tokens)
    training, held_out = prompts.split(found_fitting, settings.eval_prompts)
    policy = ActorCritic(loaded, settings.lora_rank, settings.seed, settings.sampling).to(device)
    return LanguagePPO(policy, training, reward, settings.options, settings.seed), held_out


def _stored(settings: RunSettings) -> dict[str, Any]:
    """As `settings_of` reads them. A run without scores has no target."""
    stored = asdict(settings)
    stored["options"]["target"] = None if settings.options.target == "none" else settings.options.target
    return stored


def _with_whole_path(settings: RunSettings) -> RunSettings:
    """So that a run that is resumed from another working directory saves in the same place."""
    return settings if settings.save is None else replace(settings, save=os.path.abspath(settings.save))


def _watched(trainer: LanguagePPO, clock: Clock, follow: Follow | None) -> None:
    trainer.clock = clock
    if follow is not None:
        trainer.follow = follow


def _rounds(
    trainer: LanguagePPO,
    settings: RunSettings,
    held_out: tuple[Prompt, ...],
    writer: runs.RunWriter | None,
    on_round: Report | None,
) -> None:
    def evaluate() -> None:
        """Unless this round was evaluated already, which only the writing process knows."""
        if distributed.spread(1, lambda _: writer is not None and trainer.round not in _evaluated(writer))[0]:
            _evaluate(trainer, held_out, writer)

    if writer is not None:
        trainer.freeze_every = frozen_interval_of(settings.snapshots, trainer.policy.trainable().values())
    if settings.doctor and writer is not None:
        trainer.doctor = LiveDoctor({"run_settings": _stored(settings)}, writer.path)
    trackers, texts = Trackers(), TokenTexts(trainer.policy.tokenizer)
    try:
        if trainer.round == 0:
            evaluate()
        while trainer.round < settings.rounds:
            summary = _round(trainer, settings, held_out, texts, trackers, writer)
            if writer is not None:  # of several processes, the one that writes
                trackers.log(summary)
            if on_round is not None:
                on_round(summary)
        evaluate()
        if settings.save is not None and writer is not None:
            saving.save(trainer.policy, settings.save)
    except RollsightError as error:
        if writer is None:
            raise
        raise RollsightError(f"{error}; {kept(writer.path)}") from error


def kept(out: Path) -> str:
    """What of the run is kept, and how it goes on."""
    finished = len(runs.open(out).rounds)
    rounds = f"{finished} finished round{'' if finished == 1 else 's'}"
    return f"{out} keeps its {rounds} (continue: rollsight rlhf --resume {shlex.quote(str(out))})"


def _evaluated(writer: runs.RunWriter) -> list[int]:
    return runs.open(writer.path).evaluation_rounds


def _round(
    trainer: LanguagePPO,
    settings: RunSettings,
    held_out: tuple[Prompt, ...],
    texts: TokenTexts,
    trackers: Trackers,
    writer: runs.RunWriter | None,
) -> dict[str, Any]:
    rollout, update = trainer.train_round()
    round, options = trainer.round, settings.options
    times = dict(trainer.times)
    started = trainer.clock()
    if writer is not None:
        said = trainer.watch.attempt("texts of tokens", texts.of_completions, rollout.records)
        columns = round_columns(round, rollout, update, options, said)
        if trainer.doctor is not None:
            trainer.watch.attempt("records for the doctor", trainer.doctor.keep, round, columns)
        writer.write_records(round, columns)
        if trackers.wanted():
            trainer.watch.attempt("records for trackers", lambda: trackers.keep(top_records(columns, {})))
        if trainer.frozen is not None:
            trainer.watch.attempt("frozen round", writer.write_policy, round, trainer.frozen.save)
        writer.write_checkpoint(round, lambda file: save(trainer, file))
        times["write"] = trainer.clock() - started
    summary = {}
    if settings.eval_every and round % settings.eval_every == 0:
        started = trainer.clock()
        summary = _evaluate(trainer, held_out, writer)
        times["eval"] = trainer.clock() - started
    summary |= round_summary(rollout, update, options, times)
    if writer is not None and settings.save is not None and settings.save_every and round % settings.save_every == 0:
        folder = Path(settings.save) / f"round-{round:06d}"
        trainer.watch.attempt(f"saved model in {folder}", saving.save, trainer.policy, folder)
    findings.report(trainer.doctor, round, summary, trainer.watch, writer)
    summary["warnings"] = trainer.watch.said
    if writer is not None:
        writer.write_round(round, summary)
        writer.remove_checkpoint(round - 1)  # now that this round's is there to resume from
        writer.remove_snapshot(round - 1)  # where older runs kept it
    return {"round": round, **summary}


def _evaluate(trainer: LanguagePPO, held_out: tuple[Prompt, ...], writer: runs.RunWriter | None) -> dict[str, Any]:
    if not held_out:
        return {}
    texts, found, lengths, kl = trainer.sample(held_out)
    if writer is not None:
        more: dict[str, Any] = {
            "prompt": [one.stored for one in held_out],
            "completion": texts,
            "kl": kl.numpy(force=True),
        }
        writer.write_evaluation(trainer.round, found, lengths.numpy(force=True), more)
    return {"evaluation_return": float(found.mean())}


def checkpoint_path(run: runs.Run, round: int) -> Path:
    """Where the state after a round lies: in older runs among the snapshots.

    Raises:
        RollsightError: there is none, or it is damaged.
    """
    older = round in run.snapshot_rounds and round not in run.checkpoint_rounds
    return run.snapshot_path(round) if older else run.checkpoint_path(round)


def save(trainer: LanguagePPO, file: BinaryIO) -> None:
    """All that the next round depends on; random streams are keyed by the round, so they need no keeping."""
    state = {
        "language_format": _FORMAT,
        "round": trainer.round,
        "kl_coefficient": trainer.kl_coefficient,
        "trainable": {name: p.detach() for name, p in trainer.policy.trainable().items()},
        "optimizer": trainer.optimizer.state_dict(),
    }
    torch.save(state, file)


def restore(trainer: LanguagePPO, path: Path | os.PathLike[str]) -> None:
    """Put the trainer where it was when `path` was saved.

    Raises:
        RollsightError: the file is not a checkpoint, or of another model.
    """
    trainable = trainer.policy.trainable()
    try:
        state = torch.load(path, map_location=trainer.policy.device, weights_only=True)
        if state["language_format"] != _FORMAT or state["trainable"].keys() != trainable.keys():
            raise KeyError("trainable")
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(state["trainable"][name])
    except Exception as error:  # bytes that are not a checkpoint fail in whatever way the unpickler comes across them
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise RollsightError(f"{path} is not a checkpoint of this model ({reason}): start the run again") from error
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.round, trainer.kl_coefficient = state["round"], state["kl_coefficient"]
