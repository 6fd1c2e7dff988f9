"""`rollsight diagnose`: why the bottom records of a round hurt."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from rollsight import runs
from rollsight.cli import output
from rollsight.cli.progress import cores, progress_bar
from rollsight.cli.replayable import check_snapshots
from rollsight.cli.trust import trust_run
from rollsight.errors import RollsightError

if TYPE_CHECKING:
    from rollsight.analysis.diagnosis.round import Diagnosis
    from rollsight.analysis.diagnosis.statistics import Agreement, Correlation

_SHOWN = 8  # bottom records in the table


def diagnose(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    round: Annotated[
        int | None, tyro.conf.arg(metavar="K", help_behavior_hint="(default: the last that has a snapshot)")
    ] = None,
    records: int = 200,
    branches: int = 100,
    seconds: Annotated[float | None, tyro.conf.arg(help_behavior_hint="(default: no limit)")] = None,
    seed: int = 0,
    processes: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: all cores)")] = None,
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: RUN-diagnosis-roundK)")
    ] = None,
    overwrite: bool = False,
    env: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION", help_behavior_hint="")] = None,
    json: bool = False,
    trust: bool = False,
) -> None:
    """Why do the bottom records hurt? Compare the advantages in the buffer with Monte-Carlo ones.

    - Puts real environments into the states of the round's lowest, highest and some random
      records, and plays on with the policy of that round: A_bar = Q_bar - V_bar.
    - A sign of the buffer's advantage A_hat counts as wrong where |A_bar| exceeds two
      standard errors.
    - The round needs scores and a snapshot: train with --snapshots.
    - The explorer's page of a record shows what is found: it is kept in RUN.results.

    Example: rollsight diagnose runs/lake --round 10

    Args:
        run: The run folder.
        round: The round to look at.
        records: Records to branch: a quarter the lowest, a quarter the highest, half random.
        branches: Episodes per record for Q_bar, and the same number for V_bar.
        seconds: Stop after this time, with what is done by then.
        seed: Seed of the choice of records and of the branches.
        processes: Processes side by side, one thread each.
        out: Folder for the figures.
        overwrite: Replace figures that are there.
        env: A function that returns a new environment, wrapped as in training, where the run's
            own cannot be made again; the run's vector wrappers go around it.
        json: Print everything as JSON.
        trust: Load snapshots that hold pickles whoever wrote them; a pickle can execute any code.
    """
    trust_run(run, trust)
    from rollsight.analysis.diagnosis import pages
    from rollsight.analysis.diagnosis.figures import draw_statistics
    from rollsight.analysis.diagnosis.record import keep
    from rollsight.analysis.diagnosis.record_figures import draw_records
    from rollsight.analysis.diagnosis.round import check_options, diagnose_round
    from rollsight.analysis.diagnosis.round_data import RoundData
    from rollsight.environments.trained import function_named

    opened = runs.open(run)
    round = _last_snapshot(opened) if round is None else round
    folder = out or run.resolve().with_name(f"{opened.name}-diagnosis-round{round}")
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise RollsightError(f"{folder} exists already: choose another --out, or --overwrite it")
    if folder.resolve().is_relative_to(run.resolve()):
        raise RollsightError(f"{folder} lies in the run folder, which only training writes to: choose another --out")
    data = RoundData(opened, round, None if env is None else function_named(env))
    console = output.console(stderr=json)
    workers = cores() if processes is None else processes
    check_options(records, branches, seconds, workers, seed)  # before a progress bar is drawn
    with progress_bar(console) as progress:
        task = progress.add_task("branching", total=None)
        diagnosis = diagnose_round(
            data,
            records=records,
            branches=branches,
            seconds=seconds,
            seed=seed,
            processes=workers,
            on_progress=lambda done, asked: progress.update(task, completed=done, total=asked),
        )
    try:
        keep(opened.path, diagnosis)
    except (OSError, RollsightError) as error:  # beside the run nothing can be written
        diagnosis.notes.append(f"not kept for the explorer: {error}")
    folder.mkdir(parents=True, exist_ok=True)
    figures = [*draw_statistics(diagnosis, folder), pages.write(diagnosis, folder / "diagnosis.html")]
    try:
        figures.append(draw_records(diagnosis, data, folder))
    except RollsightError as error:
        diagnosis.notes.append(f"no picture of the records: {error}")
    if json:
        output.print_json({**asdict(diagnosis), "figures": [str(path) for path in figures]})
        return
    show(diagnosis, console)
    console.print(f"figures: {', '.join(path.name for path in figures)} in {folder}", soft_wrap=True)


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print a diagnosis as tables."""
    d = diagnosis
    console.print(f"{d.env}, round {d.round}, target {d.target}: {d.how}", style="bold", soft_wrap=True)
    console.print(
        f"{d.done} of {d.asked} records, {d.branches} branches each for Q and V, {d.steps:,} steps in "
        f"{d.seconds:.0f} s, gamma {d.gamma:g}, seed {d.seed}; {d.negative_share:.0%} of the scores are negative\n",
        soft_wrap=True,
    )
    names = ("lowest", "second", "third", "fourth", "highest")
    parts = {**d.groups, **{f"{name} fifth": part for name, part in zip(names, d.quintiles, strict=True)}}
    rows = [[name, *_agreement(part)] for name, part in parts.items()]
    columns = ["records", "n", "signs counted", "wrong", "share", "mean |A_bar - A_hat|", "mean s.e."]
    console.print(output.table(columns, rows))
    console.print("fifths: of the influence, records of the random sample")
    console.print("where A_bar is 0, noise alone makes 5 % of the signs count and half of those wrong\n")
    console.print(f"Spearman of influence with A_bar * A_hat: {_correlation(d.correlation, d.unit)}", soft_wrap=True)
    if d.tabular is not None:
        shares = (f"{name} {_share(part)} of {part.records}" for name, part in d.tabular.groups.items())
        console.print(
            f"with the paper's tabular estimate: {_correlation(d.tabular.correlation, d.unit)}; wrong signs: "
            f"{', '.join(shares)}; its rank correlation with A_bar: {d.tabular.agreement:.2f}",
            soft_wrap=True,
        )
    total = sum(part.records for part in d.harm["env"] or [])
    for name, masses in d.harm.items():
        if masses and len(masses) > 1:
            labels = [part.key + 1 if name == "phase" else part.key for part in masses]
            what = "tenth of the episode" if name == "phase" else name
            lines = [
                [f"{what} {label}", part.mass, f"{part.share:.1%}", f"{part.records / total:.1%}"]
                for label, part in zip(labels, masses, strict=True)
            ]
            console.print()
            console.print(output.table([f"harm by {what}", "sum of negative scores", "share", "of records"], lines))
    console.print()
    worst = [
        [f"{r.env}:{r.step}", r.obs, r.action, r.score, r.a_hat, f"{r.a_bar:.3g} ± {r.a_bar_error:.2g}", _sign(r)]
        for r in d.group("bottom")[:_SHOWN]
    ]
    console.print(output.table(["lowest", "obs", "action", "score", "A_hat", "A_bar", "sign"], worst))
    for note in d.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _agreement(part: Agreement) -> list[Any]:
    return [part.records, part.counted, part.mismatched, _share(part), part.difference, part.error]


def _share(part: Agreement) -> str:
    return f"{part.share:.0%}" if part.counted else "-"


def _correlation(one: Correlation, unit: str) -> str:
    units = f"{one.units} {unit}s" if unit == "episode" else f"{one.units} {unit}"
    return f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}] ({one.records} random records, {units})"


def _sign(record: Any) -> str:
    return "unsure" if record.mismatch is None else "wrong" if record.mismatch else "right"


def _last_snapshot(run: runs.Run) -> int:
    check_snapshots(run, "diagnose needs")
    return run.snapshot_rounds[-1]
