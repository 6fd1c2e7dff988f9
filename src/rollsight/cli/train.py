"""`rollsight train`: one agent, scored, filtered and recorded."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from rollsight.cli import output
from rollsight.cli.progress import round_bars, use_one_thread
from rollsight.errors import OptionError
from rollsight.training.options import TrainingOptions

if TYPE_CHECKING:
    from rollsight.training.engines import Prepared
    from rollsight.training.run import RunSettings

_DEFAULTS = TrainingOptions()


def train(
    env: Annotated[str | None, tyro.conf.arg(metavar="ENV", help_behavior_hint="")] = None,
    /,
    *,
    drop: Annotated[
        float | None, tyro.conf.arg(metavar="P", help_behavior_hint="(default: the paper's, else 0)")
    ] = None,
    random: bool = False,
    env_kwargs: Annotated[str | None, tyro.conf.arg(metavar="JSON", help_behavior_hint="")] = None,
    training: Annotated[TrainingOptions, tyro.conf.OmitArgPrefixes] = _DEFAULTS,
    out: Annotated[Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="(default: runs/ENV-ARM-TIME)")] = None,
    overwrite: bool = False,
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = None,
    tensorboard: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None,
) -> None:
    """Train an agent with PPO or A2C; score every rollout, drop what hurts, and record all of it.

    A round is 2048 records. Settings default to the paper's for FrozenLake-v1, Acrobot-v1, MiniGrid-Empty-8x8-v0,
    highway-v0 and highway-fast-v0, LunarLander-v3 and BipedalWalker-v3, and to its common ones (SGD 5e-3, nothing
    dropped) for any other environment.

    Example: rollsight train LunarLander-v3 --drop 0.5 --optimizer adam --out runs/lander

    Args:
        env: A gymnasium environment, such as FrozenLake-v1; a resumed run has its own.
        drop: Fraction of the negative-score records to leave out of each update, lowest first; 0 only scores.
        random: Drop the same number of random records instead: the control.
        env_kwargs: Keywords for the environment, such as '{"is_slippery": false}'.
        out: The run folder.
        overwrite: Replace the run folder if it is there.
        resume: Go on with this run after its last checkpoint, by its own settings; only --rounds or --steps, the whole
            length of the run, and --tensorboard may be given with it.
        tensorboard: Write each round's scalars for TensorBoard too. Weights & Biases, trackio and MLflow get them where
            a run of theirs is active in this process.
    """
    from rollsight.training.run import prepared

    use_one_thread()
    if resume is not None:
        others = {"env": env, "drop": drop, "random": random, "env_kwargs": env_kwargs}
        settings = _resumed(resume, training, {**others, "out": out, "overwrite": overwrite})
        folder = resume
    else:
        settings = _new(env, drop, random, env_kwargs, training)
        arm = str(settings.arm).replace(" ", "-").replace("=", "")
        name = f"{settings.env.replace('/', '-')}-{arm}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = out or Path("runs") / name
    with prepared(
        settings, folder, overwrite=overwrite, tensorboard=tensorboard, resume=resume is not None
    ) as training_run:
        _train(training_run, folder)


def _new(
    env: str | None, drop: float | None, random: bool, env_kwargs: str | None, training: TrainingOptions
) -> RunSettings:
    from rollsight.environments.make import check_environment
    from rollsight.training.paper import settings_for
    from rollsight.training.run import RunSettings

    if env is None:
        raise OptionError("name the environment to train in, or the run to go on with: {resume}", resume="RUN")
    check_environment(env)
    p = settings_for(env).drop if drop is None else check_fraction(drop)
    return RunSettings(
        env,
        f"{'random' if random else 'negative'}:{p}",
        env_kwargs=_keywords(env_kwargs),
        **{field.name: getattr(training, field.name) for field in fields(training)},
    ).resolved()


def _resumed(run: Path, training: TrainingOptions, others: Mapping[str, Any]) -> RunSettings:
    """The run's own settings, and the length that was asked for."""
    from rollsight.training.run import RunSettings

    given = {field.name: getattr(training, field.name) for field in fields(training)}
    changed = [name for name, value in others.items() if value not in (None, False)]
    changed += [n for n, value in given.items() if value != getattr(_DEFAULTS, n) and n not in ("rounds", "steps")]
    if changed:
        named = ", ".join("ENV" if name == "env" else "--" + name.replace("_", "-") for name in changed)
        raise OptionError(f"{{resume}} goes on with the run's own settings: leave out {named}", resume=str(run))
    settings = RunSettings.of_run(run)
    if training.rounds is None and training.steps is None:
        return settings
    return replace(settings, rounds=training.rounds, steps=training.steps).resolved()


def check_fraction(drop: float) -> float:
    """The value of --drop; `OptionError` where it is not a fraction."""
    if not 0 <= drop <= 1:
        raise OptionError("{drop} is not a fraction: give a number between 0 and 1, 0.5 for half", drop=drop)
    return drop


def _keywords(text: str | None) -> Mapping[str, Any] | None:
    if text is None:
        return None
    try:
        keywords = json.loads(text)
    except ValueError as error:
        raise OptionError(
            f"{{env_kwargs}} is not JSON ({error}): write it as '{{\"is_slippery\": false}}'", env_kwargs=text
        ) from None
    if not isinstance(keywords, dict):
        raise OptionError(
            "{env_kwargs} is not a JSON object: write keywords as '{\"is_slippery\": false}'", env_kwargs=text
        )
    return keywords


def _train(training: Prepared, folder: Path) -> None:
    settings, console = training.settings, output.console()
    resumed = f", {training.done} of them done" if training.done else ""
    environments = f"{settings.envs} environment{'s' if settings.envs > 1 else ''}"
    console.print(
        f"{settings.env}: {settings.arm}, {settings.optimizer} at {settings.lr:g}, {settings.rounds} rounds{resumed}, "
        f"seed {settings.seed}, {environments}, engine {settings.engine}",
        soft_wrap=True,
    )
    if training.note:
        console.print(f"after round {training.done}, {training.note}", soft_wrap=True)
    last: Mapping[str, Any] = {}
    with round_bars(console) as progress:
        task = progress.add_task(str(settings.arm), total=settings.rounds, completed=training.done, detail="")

        def on_progress(rounds: float, summary: Mapping[str, Any] | None) -> None:
            nonlocal last
            progress.update(task, completed=rounds)
            if summary is not None:
                last = summary
                progress.update(task, detail=describe(summary))

        training.train(on_progress)
    console.print(f"round {last['round']}: {describe_fully(last)}", soft_wrap=True)
    output.print_next_steps(console, folder)


_PHASES = ("collect", "score", "train", "eval")


def describe(summary: Mapping[str, Any]) -> str:
    """A round in one short line: return, kept share, seconds per phase."""
    seconds = [f"{summary[f'time_{name}']:.2f}" for name in _PHASES if f"time_{name}" in summary]
    return f"{_outcome(summary)}  {' + '.join(seconds)} s"


def describe_fully(summary: Mapping[str, Any]) -> str:
    """The same with the phases' names."""
    phases = [f"{name} {summary[f'time_{name}']:.2f} s" for name in _PHASES if f"time_{name}" in summary]
    return "  ".join([_outcome(summary), *phases])


def _outcome(summary: Mapping[str, Any]) -> str:
    value = summary.get("evaluation_return", summary.get("return_mean"))
    kept = summary.get("kept_frac")
    shown = "-" if kept is None else f"{100 * kept:.1f} %"
    return f"return {'-' if value is None else format(value, '.4g')}  kept {shown}"
