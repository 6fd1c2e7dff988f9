"""`rollsight intervene`: what would a round have done without some of its records?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from rollsight import runs
from rollsight.analysis.drawing import check_figure
from rollsight.cli import output
from rollsight.cli.progress import cores, progress_bar, use_one_thread
from rollsight.cli.record_lists import read_record_list
from rollsight.cli.replayable import check_snapshots
from rollsight.cli.trust import trust_run
from rollsight.errors import RollsightError
from rollsight.runs import Run

if TYPE_CHECKING:
    from rollsight.analysis.intervention.arms import Difference, Intervention


def intervene(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    rounds: Annotated[
        str | None, tyro.conf.arg(metavar="K,K,...", help_behavior_hint="(default: all that have a snapshot)")
    ] = None,
    p: float = 1.0,
    unit: Literal["record", "episode"] = "record",
    drop_records: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    semantic: Literal["repack", "mask"] = "repack",
    orders: int = 3,
    episodes: int = 100,
    seed: int = 0,
    processes: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: one per core)")] = None,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None,
    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    env: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION", help_behavior_hint="")] = None,
    overwrite: bool = False,
    json: bool = False,
    trust: bool = False,
) -> None:
    """Replay rounds with and without some of their records, and compare the policies they end in.

    - Each round on its own, from its snapshot: without the selection, with it, with as
      many random records dropped, and with scores of permuted advantages.
    - All policies of a round play the same episodes (same environment seeds, same
      random numbers for the actions); their returns are undiscounted.
    - Differences are to the unfiltered replay, with 95 % bootstrap intervals over
      episodes and minibatch orders. The buffer and its advantages stay as they were.

    Example: rollsight intervene runs/lander --rounds 10,20 --figure difference.html

    Args:
        run: The run folder.
        rounds: The rounds.
        p: The fraction of the negative-score units to drop; 1 is the paper's intervention.
        unit: What is dropped.
        drop_records: Instead, drop these records: CSV, Parquet or JSON with the columns
            round, env and step, or a text with a line ROUND:ENV:STEP for each.
        semantic: repack (dropped records leave, minibatches are formed from the rest) or
            mask (minibatches stay, dropped records get weight 0 in the loss).
        orders: Minibatch orders per arm.
        episodes: Episodes that each replayed policy plays.
        seed: Of the orders, random drops, permutations and episodes.
        processes: Processes side by side, one thread each.
        out: Folder for the results by round, result.json, difference.png and .html. When
            run again with the same settings it continues after the finished rounds.
        figure: Draw the differences (.png, .pdf, .svg; interactive: .html).
        env: A function that returns a new environment, wrapped as in training, where the run's
            own cannot be made again; the run's vector wrappers go around it.
        overwrite: Replace the figure if it is there.
        json: Print JSON instead of tables.
        trust: Load snapshots that hold pickles whoever wrote them; a pickle can execute any code.
    """
    trust_run(run, trust)
    from rollsight.analysis.intervention import InterventionSettings, run_intervention
    from rollsight.analysis.intervention.draw import draw
    from rollsight.environments.trained import function_named

    processes = cores() if processes is None else processes
    for name, value, least in (
        ("orders", orders, 1),
        ("episodes", episodes, 1),
        ("processes", processes, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise RollsightError(f"--{name} is {value}: give at least {least}")
    if drop_records is not None and (p != 1.0 or unit != "record"):
        raise RollsightError("--drop-records names what is dropped: leave out --p and --unit")
    if figure is not None:
        check_figure(figure)
    files = output.figure_files(figure, out, "difference")
    output.check_free([] if figure is None else [figure], overwrite=overwrite)
    output.check_free([] if out is None else [out / "result.json"], overwrite=True)  # of a folder that goes on
    opened = runs.open(run)
    listed = None if drop_records is None else read_record_list(drop_records)
    chosen = chosen_rounds(opened, rounds, None if listed is None else list(listed))
    if listed is not None and (missing := [round for round in chosen if round not in listed]):
        raise RollsightError(
            f"{drop_records} lists no record of round {missing[0]}: it has rounds {runs.spell(listed)}"
        )
    make_env = None if env is None else function_named(env)
    use_one_thread()
    settings = InterventionSettings(run, tuple(chosen), p, unit, semantic, orders, episodes, seed, listed)
    console = output.console(stderr=json)
    with progress_bar(console) as progress:
        task = progress.add_task("rounds x orders", total=None)
        result = run_intervention(
            settings,
            processes=min(processes, orders * len(chosen)),
            out=out,
            make_env=make_env,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if out is not None:
        output.write_json(out / "result.json", result)
    for path in files:
        draw(result, path)
    if json:
        output.print_json(result)
        return
    show(opened.name, result, console)
    output.print_files(console, files)


def chosen_rounds(run: Run, text: str | None, default: list[int] | None) -> list[int]:
    """The rounds named in the text, else the default, else all that have a snapshot.

    Raises:
        RollsightError: a round has no snapshot, or the run has none at all.
    """
    check_snapshots(run, "replays start from")
    stored = run.snapshot_rounds
    if text is None:
        rounds = stored if default is None else sorted(default)
    else:
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isdigit() for part in parts):
            raise RollsightError(f"--rounds {text} names no rounds: write numbers with commas, such as 10,20,30")
        rounds = sorted({int(part) for part in parts})
    for round in rounds:
        if round not in run.rounds:
            raise RollsightError(f"{run.path} has no round {round}: its rounds are {runs.spell(run.rounds)}")
        run.snapshot_path(round)  # names the rounds that have one
    return rounds


def show(name: str, result: Intervention, console: Console) -> None:
    """Print a row per round and arm, and the means over rounds."""
    rows: list[list[Any]] = []
    for one in result.rounds:
        for arm, of in one.arms.items():
            change = [None, None] if of.difference is None else _spell(of.difference)
            share = f"{sum(of.dropped) / len(of.dropped):.0f} of {one.records}"
            steps = round(sum(of.steps) / len(of.steps))
            rows.append([one.round, arm, share, steps, float(of.returns.mean()), *change])
    heading = ["round", "arm", "dropped", "steps", "return", "vs unfiltered", "95 % interval"]
    title = f"{name} ({result.env}): without {result.rule}, {result.semantic}"
    console.print(output.table(heading, rows, title=title))
    summary = [[arm, *_spell(change)] for arm, change in result.summary.items()]
    treated = next(arm for arm in result.summary if arm != "random")
    summary.append([f"{treated} - random", *_spell(result.over_random)])
    several = f"mean over {len(result.rounds)} rounds" if len(result.rounds) > 1 else f"round {result.rounds[0].round}"
    console.print(output.table(["arm", "vs unfiltered", "95 % interval"], summary, title=f"\n{several}"))
    console.print(
        f"counterfactual: {result.counterfactual} (same buffer and advantages); target: {result.target}; "
        f"normalisation: {result.normalisation}; {result.orders} orders x {result.episodes} common episodes, seed "
        f"{result.seed}, {result.returns} returns",
        soft_wrap=True,
    )


def _spell(change: Difference) -> list[str]:
    return [f"{change.mean:+.4g}", f"[{change.low:+.4g}, {change.high:+.4g}]"]
