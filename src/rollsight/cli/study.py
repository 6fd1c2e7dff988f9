"""`rollsight study`: plain training, IIF and random drop on the same seeds, compared."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rollsight.analysis.learning_curves import compare_runs, draw_curves
from rollsight.cli import compare, output
from rollsight.cli.progress import follow_jobs
from rollsight.cli.train import check_fraction, describe
from rollsight.errors import OptionError, RollsightError


def study(
    env: Annotated[str, tyro.conf.arg(metavar="ENV")],
    /,
    *,
    arms: tuple[Literal["ppo", "iif", "random"], ...] = ("ppo", "iif", "random"),
    drop: Annotated[
        float | None, tyro.conf.arg(metavar="P", help_behavior_hint="(default: the paper's, else 0.5)")
    ] = None,
    seeds: int = 5,
    first_seed: int = 0,
    rounds: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: the paper's, else 50)")] = None,
    envs: int = 1,
    optimizer: Annotated[
        Literal["sgd", "adam", "rmsprop"] | None, tyro.conf.arg(help_behavior_hint="(default: the paper's)")
    ] = None,
    lr: Annotated[float | None, tyro.conf.arg(help_behavior_hint="(default: the paper's)")] = None,
    eval_episodes: int = 20,
    engine: Literal["auto", "compiled", "sb3"] = "auto",
    snapshots: Annotated[str, tyro.conf.arg(metavar="every:K|all|none")] = "every:10",
    minutes: Annotated[float | None, tyro.conf.arg(help_behavior_hint="(default: no limit)")] = None,
    processes: int = 2,
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: runs/study-ENV-TIME)")
    ] = None,
    json: bool = False,
) -> None:
    """Train the same environment several ways with the same seeds, and compare final return and area under the curve.

    Arms: ppo (plain), iif (drop part of the negative-score records before each update), random (drop the same number
    at random).

    Args:
        env: A gymnasium environment, such as FrozenLake-v1.
        arms: The ways of training; the first is what the others are compared with.
        drop: The fraction p of the negative-score records that IIF drops.
        seeds: Number of seeds.
        first_seed: The first of them.
        rounds: Rounds of 2048 records.
        envs: Environments side by side in each run; the paper has one.
        optimizer: The optimiser.
        lr: Learning rate; with another optimiser than the environment's, 3e-4 for Adam and 5e-3 for SGD.
        eval_episodes: Episodes of the stochastic policy after each round.
        engine: What trains: Stable-Baselines3 (sb3), or the compiled engine (compiled), which makes the same update
            several times faster; auto takes compiled where it is installed.
        snapshots: Rounds frozen for replay.
        minutes: Stop adding seeds when the next would not end within this time.
        processes: Runs side by side, one thread each.
        out: Folder for the run folders and the picture.
        json: Print the comparison as JSON.
    """
    from rollsight.environments.make import check_environment
    from rollsight.studies.comparison import runs_of
    from rollsight.studies.runner import run_jobs
    from rollsight.training.paper import settings_for
    from rollsight.training.run import RunSettings

    for name, value in {"seeds": seeds, "processes": processes, "arms": len(arms)}.items():
        if value < 1:
            raise RollsightError(f"--{name} is {value}: give at least 1")
    if not 0 <= first_seed < 2**32 - seeds:
        raise OptionError("{first_seed} is not a seed: give a whole number from 0", first_seed=first_seed)
    folder = out or Path("runs") / f"study-{env.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and any(folder.iterdir()):
        raise RollsightError(f"{folder} exists already and is not empty: choose another --out")
    check_environment(env)
    p = check_fraction(drop) if drop is not None else settings_for(env).drop or 0.5
    base = RunSettings(
        env,
        optimizer=optimizer,
        lr=lr,
        rounds=rounds,
        envs=envs,
        eval_episodes=eval_episodes,
        engine=engine,
        snapshots=snapshots,
    )
    jobs = runs_of(base, arms, p, range(first_seed, first_seed + seeds), folder)
    settings = jobs[0].settings
    console = output.console(stderr=json)
    limit = "" if minutes is None else f", those that end within {minutes:g} minutes"
    console.print(
        f"{env}: {', '.join(arms)} with p = {p:g}; {settings.rounds} rounds of 2048 records, {settings.optimizer} at "
        f"{settings.lr:g}, {envs} environment{'s' if envs > 1 else ''}, engine {settings.engine}, "
        f"up to {seeds} seeds{limit}; {processes} processes",
        soft_wrap=True,
    )
    started = time.monotonic()
    time_limit = None if minutes is None else 60 * minutes
    done = set[str]()
    for event in follow_jobs(console, run_jobs(jobs, processes, together=len(arms), seconds=time_limit), describe):
        done.add(event.job.name)
        console.print(f"{event.job.name:<14} done", highlight=False)
    finished = [job for job in jobs if job.name in done]
    if not finished:
        raise RollsightError(f"no run of the study ended with a result; what there is of them is in {folder}")
    seconds = time.monotonic() - started
    ran = sorted({job.settings.seed for job in finished})
    console.print(f"{len(ran)} seeds ({ran[0]} to {ran[-1]}) x {settings.rounds} rounds in {seconds:.0f} s\n")
    comparisons = compare_runs(compare.open_runs([job.out for job in finished]), arms[0])
    draw_curves(comparisons, folder / "curves.png")
    if json:
        output.print_json([compare.as_json(one) for one in comparisons])
        return
    for one in comparisons:
        compare.show(one, console)
    console.print(f"learning curves: {folder / 'curves.png'}\nrun folders:     {folder}", soft_wrap=True)
    console.print(f"look inside:     {output.command('top', finished[0].out, '--bottom')}", soft_wrap=True)
