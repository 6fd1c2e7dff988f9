"""One training run: plain settings, an agent, and the run folder that it leaves; resumable."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rollsight import runs, selection
from rollsight.adapters import options
from rollsight.environments.make import check_environment, make_environment, observations_of
from rollsight.errors import OptionError, RollsightError
from rollsight.trackers import Trackers
from rollsight.training.engines import OnProgress, Prepared, prepare_compiled, prepare_sb3
from rollsight.training.options import Engine, TrainingOptions
from rollsight.training.paper import A2C_LR, RECORDS_PER_ROUND, EnvSettings, settings_for

_PPO = {"batch_size": 64, "epochs": 10, "clip": 0.2}  # Stable-Baselines3's, which A2C does not have


@dataclass(frozen=True)
class RunSettings(TrainingOptions):
    """What one run is: the options, and what they are applied to.

    env: a gymnasium environment's name.
    selection: "negative:P" (IIF), "random:P" (the same number of random records), or None for plain training.
    arm: the run's name in comparisons; None names it after the selection.
    env_kwargs: keywords that `gymnasium.make` gets with the name.
    """

    env: str
    selection: str | None = None
    arm: str | None = None
    env_kwargs: Mapping[str, Any] | None = None

    @classmethod
    def of_run(cls, path: Path) -> RunSettings:
        """The settings that the run in `path` was started with.

        Raises:
            RollsightError: the folder is not a run, or its `run.json` has no settings of `rollsight train`.
        """
        stored = runs.open(path).metadata.get("run_settings")
        known = {field.name for field in fields(cls)}
        if not isinstance(stored, Mapping) or not isinstance(stored.get("env"), str) or not stored.keys() <= known:
            raise RollsightError(f"{path} is not a run of `rollsight train`: name one that it started")
        try:
            # JSON has no infinity.
            norm = {"max_grad_norm": float(stored["max_grad_norm"])} if "max_grad_norm" in stored else {}
            # What the compiled engine was called in older runs.
            engine = {"engine": "compiled"} if stored.get("engine") == "fast" else {}
            return cls(**{**stored, **norm, **engine}).resolved()
        except RollsightError:
            raise
        except (TypeError, ValueError, AttributeError) as error:  # values of other kinds
            raise RollsightError(f"{path} holds settings that no run has ({error}): start the run again") from error

    @property
    def records(self) -> int:
        """Of a round; the settings are resolved."""
        assert self.n_steps is not None
        return self.n_steps * self.envs

    def resolved(self) -> RunSettings:
        """With every None replaced, and the values checked.

        Raises:
            OptionError: a value is wrong, or two do not go together.
        """
        _check_numbers(self)
        paper: EnvSettings = settings_for(self.env)
        optimizer = self.optimizer or (paper.optimizer if self.algo == "ppo" else "rmsprop")
        usual = paper.lr_with(optimizer) if self.algo == "ppo" else A2C_LR
        rule = None if self.selection is None else selection.from_text(self.selection)
        if self.n_steps is None and RECORDS_PER_ROUND % self.envs:
            raise OptionError(
                f"{{envs}} does not divide the {RECORDS_PER_ROUND} records of a round: give 1, 2, 4, 8, ..., or the "
                "steps of each environment with {n_steps}",
                envs=self.envs,
                n_steps=max(1, RECORDS_PER_ROUND // self.envs),
            )
        settings = replace(
            self,
            optimizer=optimizer,
            lr=usual if self.lr is None else self.lr,
            n_steps=RECORDS_PER_ROUND // self.envs if self.n_steps is None else self.n_steps,
            gae_lambda=(0.95 if self.algo == "ppo" else 1.0) if self.gae_lambda is None else self.gae_lambda,
            engine=_engine(self) if self.engine == "auto" else self.engine,
            selection=None if isinstance(rule, selection.DropNegative) and rule.p == 0 else self.selection,
        )
        if self.algo == "ppo":
            missing: dict[str, Any] = {n: value for n, value in _PPO.items() if getattr(settings, n) is None}
            settings = replace(settings, **missing)
        if self.arm is None:
            settings = replace(settings, arm=_arm(settings))
        settings = replace(settings, rounds=_rounds(settings, paper.rounds))
        _check_together(settings)
        return settings

    @property
    def hidden_layers(self) -> list[int] | None:
        """Their widths, from `net`."""
        return None if self.net is None else [int(width) for width in self.net.split(",")]


def run_training(
    settings: RunSettings,
    out: Path,
    *,
    overwrite: bool = False,
    tensorboard: Path | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Train one agent and write its run folder `out`.

    tensorboard: a folder that also gets each round's scalars, as TensorBoard's event files.
    on_progress: called with the rounds done so far, a fraction inside a round, and at a round's end with its summary.
    """
    with prepared(settings, out, overwrite=overwrite, tensorboard=tensorboard) as training:
        training.train(on_progress)


@contextmanager
def prepared(
    settings: RunSettings,
    out: Path,
    *,
    overwrite: bool = False,
    tensorboard: Path | None = None,
    resume: bool = False,
) -> Iterator[Prepared]:
    """A run that is ready to begin or, with `resume`, to go on: its settings are checked, its environments and its
    model are there, and what it opens is closed at the end of the block.

    Raises:
        RollsightError: a setting is wrong, the environment cannot be made, the folder is taken, or has nothing to
            resume from.
    """
    settings = settings.resolved()
    assert settings.rounds is not None
    check_environment(settings.env)
    _check_keywords(settings)
    if not resume:
        _check_place(out, overwrite)
    elif (done := max(runs.open(out).checkpoint_rounds, default=0)) >= settings.rounds:
        raise OptionError(
            f"the run {out} has its {done} rounds: give more of them with {{rounds}}", rounds=done + settings.rounds
        )
    prepare = prepare_compiled if settings.engine == "compiled" else prepare_sb3
    with (
        closing(Trackers(tensorboard)) as trackers,
        prepare(settings, out, overwrite=overwrite, trackers=trackers, resume=resume) as training,
    ):
        yield training


def _check_keywords(settings: RunSettings) -> None:
    if not settings.env_kwargs:
        return
    try:
        make_environment(settings.env, **settings.env_kwargs).close()
    except RollsightError:
        raise
    except Exception as error:  # whatever the environment's own code says of a keyword
        reason = f"{type(error).__name__}: {str(error).partition(' was raised')[0]}"
        raise OptionError(
            f"{{env_kwargs}} does not fit {settings.env} ({reason}): give keywords of its constructor",
            env_kwargs=json.dumps(dict(settings.env_kwargs)),
        ) from error


def _check_numbers(settings: RunSettings) -> None:
    at_least = {"rounds": 1, "steps": 1, "n_steps": 1, "envs": 1, "batch_size": 2, "epochs": 1, "eval_episodes": 0}
    for name, least in at_least.items():
        value = getattr(settings, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise OptionError(f"{{{name}}} is not a whole number of at least {least}: give one", **{name: value})
    above_zero = {"lr": False, "clip": False, "max_grad_norm": True}  # whether infinity is one
    for name, infinite in above_zero.items():
        value = getattr(settings, name)
        if value is not None and not (value > 0 and (infinite or math.isfinite(value))):
            raise OptionError(f"{{{name}}} is not a positive number: give one above 0", **{name: value})
    for name in ("gamma", "gae_lambda"):
        value = getattr(settings, name)
        if value is not None and not 0 <= value <= 1:
            raise OptionError(f"{{{name}}} is outside 0 to 1: give a number between them", **{name: value})
    for name in ("ent_coef", "vf_coef"):
        if not (math.isfinite(value := getattr(settings, name)) and value >= 0):
            raise OptionError(f"{{{name}}} is not a weight: give 0 or a positive number", **{name: value})
    if not 0 <= settings.seed < 2**32:
        raise OptionError("{seed} is not a seed: give a whole number from 0 to 4294967295", seed=settings.seed)
    if settings.net is not None and not all(w.strip().isdecimal() and int(w) > 0 for w in settings.net.split(",")):
        raise OptionError("{net} is not a list of layer widths: write them as 64,64", net=settings.net)
    options.interval_of(settings.snapshots)
    options.check_every(settings.every)
    options.rule_of(None, settings.selection, settings.unit)


def _check_together(settings: RunSettings) -> None:
    if settings.algo == "a2c":
        for name in _PPO:
            if (value := getattr(settings, name)) is not None:
                raise OptionError(
                    f"{{{name}}} is PPO's, and A2C makes one step from all records of a round: leave it out",
                    **{name: value},
                )
    if settings.records < 2:
        raise OptionError(
            "{n_steps} with {envs} is a round of one record: give at least 2",
            n_steps=settings.n_steps,
            envs=settings.envs,
        )
    if settings.batch_size is not None and settings.batch_size > settings.records:
        raise OptionError(
            f"{{batch_size}} is more than the {settings.records} records of a round: give less, or longer rounds with "
            "{n_steps}",
            batch_size=settings.batch_size,
            n_steps=-(-settings.batch_size // settings.envs),
        )
    if settings.batch_size == settings.records and settings.selection is not None:
        raise OptionError(
            f"{{batch_size}} takes all {settings.records} records of a round, and one minibatch always stays, so that "
            "nothing could be dropped: give a smaller one",
            batch_size=settings.batch_size,
        )
    if settings.engine == "compiled" and (left := _not_compiled(settings)) is not None:
        raise OptionError(
            f"{{{left}}} is not covered by the compiled engine: use {{engine}}",
            **{left: getattr(settings, left), "engine": "sb3"},
        )


def _not_compiled(settings: RunSettings) -> str | None:
    """The first setting that the compiled engine leaves to Stable-Baselines3."""
    left = {"algo": settings.algo != "ppo", "optimizer": settings.optimizer == "rmsprop"}
    left |= {"normalize": settings.normalize}
    return next((name for name, asked in left.items() if asked), None)


def _rounds(settings: RunSettings, usual: int) -> int:
    if settings.steps is None:
        return usual if settings.rounds is None else settings.rounds
    rounds = -(-settings.steps // settings.records)
    if settings.rounds not in (None, rounds):
        raise OptionError(
            "{steps} and {rounds} are two lengths of one run: give one of them",
            steps=settings.steps,
            rounds=settings.rounds,
        )
    return rounds


def _engine(settings: RunSettings) -> Engine:
    covered = _not_compiled(settings) is None and observations_of(settings.env) != "atari"
    return "compiled" if covered and find_spec("jax") is not None else "sb3"


def _arm(settings: RunSettings) -> str:
    if settings.selection is None:
        return settings.algo
    kind, _, fraction = settings.selection.partition(":")
    return f"{'iif' if kind == 'negative' else kind} p={float(fraction):g}"


def _check_place(out: Path, overwrite: bool) -> None:
    """Refuse a folder that the run cannot be written to, before anything is made."""
    if out.exists() and not out.is_dir():
        raise OptionError("{out} is a file: choose another place for the run", out=out)
    if out.is_dir() and any(out.iterdir()):
        if not runs.is_run(out):
            raise OptionError("{out} is not empty and not a run: choose another place for the run", out=out)
        if not overwrite:
            raise OptionError(
                f"the run {out} exists already: choose another place, or replace it with {{overwrite}}",
                overwrite=True,
            )
