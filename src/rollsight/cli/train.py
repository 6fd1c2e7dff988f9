"""`rollsight train`: one agent, scored, filtered and recorded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from rollsight.cli import output
from rollsight.cli.progress import round_bars, use_one_thread
from rollsight.errors import RollsightError


def train(
    env: Annotated[str, tyro.conf.arg(metavar="ENV")],
    /,
    *,
    algo: Literal["ppo", "a2c"] = "ppo",
    optimizer: Annotated[
        Literal["sgd", "adam", "rmsprop"] | None, tyro.conf.arg(help_behavior_hint="(default: the paper's)")
    ] = None,
    lr: Annotated[float | None, tyro.conf.arg(help_behavior_hint="(default: the paper's)")] = None,
    drop: Annotated[
        float | None, tyro.conf.arg(metavar="P", help_behavior_hint="(default: the paper's, else 0)")
    ] = None,
    random: bool = False,
    unit: Literal["record", "episode"] = "record",
    every: int = 1,
    rounds: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: the paper's, else 50)")] = None,
    seed: int = 0,
    envs: int = 1,
    eval_episodes: int = 20,
    engine: Literal["auto", "fast", "sb3"] = "auto",
    snapshots: Annotated[str, tyro.conf.arg(metavar="every:K|all|none")] = "every:10",
    out: Annotated[Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="(default: runs/ENV-ARM-TIME)")] = None,
    overwrite: bool = False,
) -> None:
    """Train an agent with PPO or A2C; score every rollout, drop what hurts, and record all of it.

    A round is 2048 records. Settings default to the paper's for FrozenLake-v1, Acrobot-v1, MiniGrid-Empty-8x8-v0,
    highway-v0 and highway-fast-v0, LunarLander-v3 and BipedalWalker-v3, and to its common ones (SGD 5e-3, nothing
    dropped) for any other environment.

    Args:
        env: A gymnasium environment, such as FrozenLake-v1.
        algo: The algorithm; A2C defaults to RMSprop at 7e-4.
        optimizer: The optimiser.
        lr: Learning rate; with another optimiser than the environment's, 3e-4 for Adam and 5e-3 for SGD.
        drop: Fraction of the negative-score records to leave out of each update, lowest first; 0 only scores.
        random: Drop as many random records instead: the control.
        unit: What is dropped.
        every: Score every k-th round, and keep everything in the others.
        rounds: Rounds to train.
        seed: Seed of every random stream.
        envs: Environments side by side. With the compiled engine, several in EnvPool spend one of the round's rows on
            every reset, so that a round has fewer records.
        eval_episodes: Episodes of the stochastic policy after each round, apart from training; 0 for none.
        engine: What trains: Stable-Baselines3, or fast, the compiled engine, which makes the same update several times
            faster; auto takes it where it is installed (rollsight[fast]) for PPO on all but Atari.
        snapshots: Rounds frozen for replay.
        out: The run folder.
        overwrite: Replace the run folder if it is there.
    """
    from rollsight.adapters.sb3.environments import check_environment
    from rollsight.studies.settings import settings_for
    from rollsight.studies.training_run import RunSettings, run_training

    check_environment(env)
    use_one_thread()
    p = settings_for(env).drop if drop is None else drop
    settings = RunSettings(
        env,
        algo=algo,
        optimizer=optimizer,
        lr=lr,
        selection=f"{'random' if random else 'negative'}:{p}",
        unit=unit,
        every=every,
        rounds=rounds,
        seed=seed,
        envs=envs,
        eval_episodes=eval_episodes,
        snapshots=snapshots,
        engine=engine,
    ).resolved()
    arm = str(settings.arm).replace(" ", "-").replace("=", "")
    folder = out or Path("runs") / f"{env.replace('/', '-')}-{arm}-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and not overwrite and any(folder.iterdir()):
        raise RollsightError(f"{folder} exists already: choose another --out, or --overwrite it")
    console = output.console()
    console.print(
        f"{env}: {settings.arm}, {settings.optimizer} at {settings.lr:g}, {settings.rounds} rounds, seed {seed}, "
        f"{envs} environment{'s' if envs > 1 else ''}, engine {settings.engine}",
        highlight=False,
    )
    last: Mapping[str, Any] = {}
    with round_bars(console) as progress:
        task = progress.add_task(str(settings.arm), total=settings.rounds, detail="")

        def on_progress(rounds: float, summary: Mapping[str, Any] | None) -> None:
            nonlocal last
            progress.update(task, completed=rounds)
            if summary is not None:
                last = summary
                progress.update(task, detail=describe(summary))

        run_training(settings, folder, overwrite=overwrite, on_progress=on_progress)
    console.print(f"round {last['round']}: {describe_fully(last)}", soft_wrap=True)
    console.print(f"run folder: {folder}\nlook at it:  {output.command('top', folder, '--bottom')}", soft_wrap=True)


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
    value = summary.get("evaluation_return", summary["return_mean"])
    return f"return {'-' if value is None else format(value, '.4g')}  kept {100 * summary['kept_frac']:.1f} %"
