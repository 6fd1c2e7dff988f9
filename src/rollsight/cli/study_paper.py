"""`rollsight study paper`: the paper's experiments, their controls, and what they show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from rollsight.cli import output
from rollsight.cli.progress import cores, follow_jobs, say_jobs
from rollsight.cli.train import describe
from rollsight.errors import RollsightError

if TYPE_CHECKING:
    from rollsight.studies.paper.cell import Cell
    from rollsight.studies.paper.results import EnvResult
    from rollsight.studies.runner import Progress


def study_paper(
    *,
    envs: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="ENV,...", help_behavior_hint="(default: all six, highway as highway-fast-v0)"),
    ] = (),
    arms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ARM,...")] = ("ppo", "iif", "random"),
    seeds: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: 20, quick: 3)")] = None,
    first_seed: int = 0,
    budget: Literal["quick", "full"] = "full",
    processes: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: the cores)")] = None,
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = None,
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/paper"),
    only_report: bool = False,
    against: Annotated[str | None, tyro.conf.arg(metavar="ARM", help_behavior_hint="(default: each arm's PPO)")] = None,
) -> None:
    """Run the paper's experiments with the compiled engine, and write tables, figures and a page.

    A run whose curve is in the folder already is not repeated, so an interrupted study goes on where it was, and arms,
    seeds and environments can be added later. Arms are written KIND[:P][@lr=X,optimizer=sgd|adam,clip=X|off,envs=N];
    what is not given is the paper's. Kinds: ppo, iif, random, permuted, crossfit, matched-norm, matched-kl,
    matched-steps, mismatch, product, prioritised, dtv, dtv-loo, preconditioned, rescored, actor, critic, paused,
    adaptive.

    Args:
        envs: Environments of the paper.
        arms: What to run, such as ppo iif random, iif:0.25, or ppo@lr=0.015.
        seeds: Number of seeds; all arms share them.
        first_seed: The first of them.
        budget: full has the paper's rounds; quick at most 20 of them and few episodes, to see that all works.
        processes: Runs side by side, one thread each.
        ray: Spread the runs over the Ray cluster at this address; local starts one here.
        out: Folder of the study: curves, tables (results.md, results.csv), figures and index.html.
        only_report: Run nothing; write tables and figures of what the folder holds.
        against: Run and write nothing; print the tables with every arm compared with this one.
    """
    from rollsight.studies.paper import tables
    from rollsight.studies.paper.arms import arm_of
    from rollsight.studies.paper.results import read_results, write_csv
    from rollsight.studies.paper.study import cells_of, envs_of

    try:
        import rollsight.training.compiled  # noqa: F401
    except ImportError as error:
        raise RollsightError(str(error)) from error
    count = seeds if seeds is not None else {"quick": 3, "full": 20}[budget]
    at_once = processes if processes is not None else cores()
    for name, value in {"seeds": count, "processes": at_once}.items():
        if value < 1:
            raise RollsightError(f"--{name} is {value}: give at least 1")
    console = output.console()
    if against is not None:
        output.print_text(console, tables.markdown(read_results(out, arm_of(against))))
        return
    if not only_report:
        started, files = any(out.glob("*/*/*.csv")), ("results.md", "results.csv", "index.html", "sweeps.png")
        output.check_free([out / name for name in files], overwrite=started, advice="choose another --out")
        chosen = [arm_of(arm) for arm in listed(arms)]
        cells = cells_of(envs_of(listed(envs)), chosen, range(first_seed, first_seed + count), budget, out)
        left = [cell for cell in cells if not cell.path.exists()]
        say_jobs(console, len(cells), len(left), at_once)
        _run(console, left, at_once, ray)
    results = read_results(out)
    write_csv(results, out / "results.csv")
    _report(console, results, out)


def _run(console: Console, cells: Sequence[Cell], processes: int, ray: str | None) -> None:
    """Run the cells, keeping each curve as it comes."""
    from rollsight.studies.ray_cluster import run_on_ray
    from rollsight.studies.runner import run_jobs

    if not cells:
        return
    events: Iterator[Progress[Cell]] = run_jobs(cells, processes) if ray is None else run_on_ray(cells, ray)
    for event in follow_jobs(console, events, describe, total=len(cells)):
        event.job.write(event.result)


def _report(console: Console, results: Sequence[EnvResult], out: Path) -> None:
    from rollsight.studies.paper import figures, tables

    text = tables.markdown(results)
    output.write_texts(out, {"results.md": text})
    pictures = [figures.draw_curves(result, out / f"{result.env}.png") for result in results]
    compared = [figures.draw_comparisons(result, out / f"{result.env}-arms.png") for result in results]
    pictures += filter(None, [*compared, figures.draw_sweeps(results, out / "sweeps.png")])
    pictures.append(figures.write(results, out / "index.html"))
    output.print_text(console, text)
    output.print_files(console, pictures)


def listed(given: Sequence[str]) -> list[str]:
    """Words, whether spaces or commas stand between them; commas inside an arm's options stay."""
    parts = list[str]()
    for part in ",".join(given).split(","):
        option = "=" in part and ("@" not in part)
        if option and parts:
            parts[-1] += f",{part}"
        elif part:
            parts.append(part)
    return parts
