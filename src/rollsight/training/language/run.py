"""A training run from plain settings: model, prompts and reward by name, rounds into a run folder, resumable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from accelerate import PartialState

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.training.language import models, parallel, prompts, rewards
from rollsight.training.language.columns import round_columns, round_summary
from rollsight.training.language.policy import ActorCritic
from rollsight.training.language.ppo import LanguagePPO, Options

Report = Callable[[Mapping[str, Any]], None]
Clock = Callable[[], float]
_FORMAT = 1


@dataclass(frozen=True)
class RunSettings:
    """One run. model, prompts, reward: names as `models.load`, `prompts.load` and `rewards.load` take them.

    lora_rank: of the adapter, 0 trains all weights; max_prompt_tokens: longer prompts are left out, None keeps all.
    eval_prompts: held-out prompts that are completed before training, after the last round, and after every
    `eval_every`-th one (0: no others).
    """

    model: str = "smollm2"
    prompts: str = "realtoxicityprompts"
    reward: str = "profanity"
    options: Options = field(default_factory=Options)
    rounds: int = 20
    seed: int = 0
    lora_rank: int = 16
    precision: models.Precision = "auto"
    max_prompt_tokens: int | None = None
    eval_prompts: int = 16
    eval_every: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("lora_rank", 0), ("eval_prompts", 0), ("eval_every", 0)):
            if getattr(self, name) < least:
                raise RollsightError(f"{name} is {getattr(self, name)}: give at least {least}")

    @property
    def arm(self) -> str:
        """The run's name among others, as comparisons show it."""
        options = self.options
        if options.target is None or options.drop == 0:
            return "ppo"
        rescored = "" if options.rescore == "round" else f" per {options.rescore}"
        fitted = " cross-fit" if options.cross_fit else ""
        steps = " as many steps" if options.as_many_steps else ""
        return f"{'random' if options.random else 'iif'} {options.target} p={options.drop:g}{rescored}{fitted}{steps}"


def train(
    settings: RunSettings,
    out: Path,
    *,
    overwrite: bool = False,
    on_round: Report | None = None,
    clock: Clock = time.perf_counter,
) -> None:
    """Train into the new run folder `out`; on_round is called with each finished round's summary, whose seconds are by
    `clock`.

    Raises:
        RollsightError: a name is wrong, the model does not fit, the folder is taken, or a round cannot go on (its
        message says which rounds are kept).
    """
    trainer, held_out = prepare(settings)
    trainer.clock = clock
    if parallel.rank():
        return _rounds(trainer, settings, held_out, None, on_round)
    described = {
        "host": "rollsight",
        "algo": "ppo",
        "env": f"{settings.model}, {settings.prompts}, {settings.reward}",
        "arm": settings.arm,
        "seed": settings.seed,
        "trainable_parameters": sum(p.numel() for p in trainer.policy.trainable().values()),
        "precision": str(trainer.policy.language_model.dtype).removeprefix("torch."),
        "processes": parallel.size(),
        "prompts_to_train_on": len(trainer.prompts),
        "run_settings": asdict(settings),
    }
    with runs.create(out, described, overwrite=overwrite) as writer:
        return _rounds(trainer, settings, held_out, writer, on_round)


def resume(
    out: Path, rounds: int | None = None, on_round: Report | None = None, clock: Clock = time.perf_counter
) -> RunSettings:
    """Continue the run in `out` with its own settings, up to `rounds` rounds in all (None: as many as it was planned
    with). It ends as it would have without the interruption.

    Raises:
        RollsightError: as `train`; the folder is no run of this trainer, or its checkpoint is missing or damaged.
    """
    settings = settings_of(out)
    settings = replace(settings, rounds=rounds or settings.rounds)
    trainer, held_out = prepare(settings)
    trainer.clock = clock
    writer = runs.resume(out) if parallel.rank() == 0 else None
    try:
        done = max(runs.open(out).rounds, default=0)
        if done:
            restore(trainer, runs.open(out).snapshot_path(done))
        _rounds(trainer, settings, held_out, writer, on_round)
    finally:
        if writer is not None:
            writer.close()
    return settings


def settings_of(out: Path) -> RunSettings:
    """The settings that the run in `out` was started with."""
    stored: Any = runs.open(out).metadata.get("run_settings")
    try:
        return RunSettings(**{**stored, "options": Options(**stored["options"])})
    except (TypeError, KeyError) as error:
        raise RollsightError(f"{out} is no run of a language model: name one that `rollsight rlhf` started") from error


def prepare(settings: RunSettings) -> tuple[LanguagePPO, tuple[str, ...]]:
    """The trainer before its first round, on its device, and the held-out prompts."""
    cpu = not torch.cuda.is_available()
    device = PartialState(cpu=cpu).device  # joins the other processes where a launcher started several
    reward = rewards.load(settings.reward)
    found = prompts.load(settings.prompts)
    loaded = models.load(settings.model, precision=settings.precision, full=settings.lora_rank == 0, seed=settings.seed)
    found_fitting = prompts.fitting(found, loaded, settings.options.max_new_tokens, settings.max_prompt_tokens)
    training, held_out = prompts.split(found_fitting, settings.eval_prompts)
    policy = ActorCritic(loaded, settings.lora_rank, settings.seed).to(device)
    return LanguagePPO(policy, training, reward, settings.options, settings.seed), held_out


def _rounds(
    trainer: LanguagePPO,
    settings: RunSettings,
    held_out: tuple[str, ...],
    writer: runs.RunWriter | None,
    on_round: Report | None,
) -> None:
    def evaluate() -> None:
        """Unless this round was evaluated already, which only the writing process knows."""
        if parallel.spread(1, lambda _: writer is not None and trainer.round not in _evaluated(writer))[0]:
            _evaluate(trainer, held_out, writer)

    try:
        if trainer.round == 0:
            evaluate()
        while trainer.round < settings.rounds:
            summary = _round(trainer, settings, held_out, writer)
            if on_round is not None:
                on_round(summary)
        evaluate()
    except RollsightError as error:
        if writer is None:
            raise
        raise RollsightError(
            f"{error}; {writer.path} keeps its {writer.last_round} finished rounds (continue: rollsight rlhf --resume "
            f"{writer.path})"
        ) from error


def _evaluated(writer: runs.RunWriter) -> list[int]:
    return runs.open(writer.path).evaluation_rounds


def _round(
    trainer: LanguagePPO, settings: RunSettings, held_out: tuple[str, ...], writer: runs.RunWriter | None
) -> dict[str, Any]:
    rollout, update = trainer.train_round()
    round, options = trainer.round, settings.options
    times = dict(trainer.times)
    started = trainer.clock()
    if writer is not None:
        writer.write_records(round, round_columns(round, rollout, update, options))
        writer.write_snapshot(round, lambda file: save(trainer, file))
        times["write"] = trainer.clock() - started
    summary = {}
    if settings.eval_every and round % settings.eval_every == 0:
        started = trainer.clock()
        summary = _evaluate(trainer, held_out, writer)
        times["eval"] = trainer.clock() - started
    summary |= round_summary(rollout, update, options, times)
    if writer is not None:
        writer.write_round(round, summary)
        writer.remove_snapshot(round - 1)  # now that this round's is there to resume from
    return {"round": round, **summary}


def _evaluate(trainer: LanguagePPO, held_out: tuple[str, ...], writer: runs.RunWriter | None) -> dict[str, Any]:
    if not held_out:
        return {}
    texts, found, lengths, kl = trainer.sample(held_out)
    if writer is not None:
        more: dict[str, Any] = {"prompt": list(held_out), "completion": texts, "kl": kl.numpy(force=True)}
        writer.write_evaluation(trainer.round, found, lengths.numpy(force=True), more)
    return {"evaluation_return": float(found.mean())}


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
        RollsightError: the file is no checkpoint, or of another model.
    """
    trainable = trainer.policy.trainable()
    try:
        state = torch.load(path, map_location=trainer.policy.device, weights_only=True)
        if state["language_format"] != _FORMAT or state["trainable"].keys() != trainable.keys():
            raise KeyError("trainable")
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(state["trainable"][name])
    except Exception as error:  # bytes that are no checkpoint fail in whatever way the unpickler comes across them
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise RollsightError(f"{path} is no checkpoint of this model ({reason}): start the run again") from error
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.round, trainer.kl_coefficient = state["round"], state["kl_coefficient"]
