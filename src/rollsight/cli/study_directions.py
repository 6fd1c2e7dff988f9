"""`rollsight study directions`: which way the arms go, seen from records that none of them has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from rollsight.cli import output
from rollsight.cli.progress import cores, follow_jobs, say_jobs
from rollsight.cli.study_paper import listed
from rollsight.cli.train import describe
from rollsight.errors import RollsightError

_ARMS = ("ppo", "iif", "random", "permuted", "matched-norm")


def study_directions(
    *,
    envs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ENV,...")] = ("Acrobot-v1",),
    arms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ARM,...")] = _ARMS,
    seeds: int = 5,
    first_seed: int = 0,
    rounds: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: the paper's, else 50)")] = None,
    every: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: 30 comparisons a run)")] = None,
    records: int = 8192,
    processes: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: the cores)")] = None,
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = None,
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/directions"),
    only_report: bool = False,
    against: Annotated[str | None, tyro.conf.arg(metavar="ARM", help_behavior_hint="(default: the first)")] = None,
) -> None:
    """Does dropping records point the update the right way, or only make it longer?

    One arm trains; in its rounds the other arms make their updates too, from the same parameters, optimiser state and
    buffer, and all are compared with fresh records of the same policy. An update that gains much on its own records and
    little on fresh ones has learnt their noise. This tells arms apart in minutes where learning curves need many seeds.

    A run whose file is in the folder already is not repeated. Arms are written as for `rollsight study paper`, all with
    the same options after the @.

    Args:
        envs: Environments, those of the paper with its settings, any other with its common ones.
        arms: What to compare, such as ppo iif crossfit; the first one trains.
        seeds: Number of seeds.
        first_seed: The first of them.
        rounds: Rounds to train.
        every: Compare in every k-th round.
        records: Fresh records of a comparison.
        processes: Runs side by side, one thread each.
        ray: Spread the runs over the Ray cluster at this address; local starts one here.
        out: Folder of the study: a file for each run, settings.json, results.md, results.csv, directions.png,
            index.html.
        only_report: Run nothing; write tables and figures of what the folder holds.
        against: Run and write nothing; print the tables with every arm compared with this one.
    """
    at_once = processes if processes is not None else cores()
    counts = {"seeds": seeds, "rounds": rounds, "every": every, "records": records, "processes": at_once}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise RollsightError(f"--{name} is {value}: give at least 1")
    console = output.console()
    if against is not None:
        from rollsight.studies.directions import results
        from rollsight.studies.paper.arms import arm_of

        output.print_text(console, results.markdown(results.read_results(out, arm_of(against))))
        return
    if not only_report:
        try:
            import rollsight.training.compiled  # noqa: F401
        except ImportError as error:
            raise RollsightError(str(error)) from error
        from rollsight.environments.make import check_environment, observations_of
        from rollsight.studies.cells import keep_settings
        from rollsight.studies.directions.cell import Settings, cells_of
        from rollsight.studies.paper.arms import arm_of
        from rollsight.studies.ray_cluster import run_on_ray
        from rollsight.studies.runner import run_jobs

        started, files = (out / "settings.json").exists(), ("results.md", "results.csv", "directions.png", "index.html")
        output.check_free([out / name for name in files], overwrite=started, advice="choose another --out")
        chosen, wanted = [arm_of(arm) for arm in listed(arms)], listed(envs)
        for env in wanted:
            check_environment(env)
            if observations_of(env) == "atari":
                raise RollsightError(
                    f"The compiled engine leaves Atari to Stable-Baselines3; choose another than {env}."
                )
        study = Settings(rounds, every, records)
        cells = cells_of(wanted, chosen, range(first_seed, first_seed + seeds), study, out)
        keep_settings(out, study, "directions")
        left = [cell for cell in cells if not cell.done]
        say_jobs(console, len(cells), len(left), at_once)
        events = run_jobs(left, at_once) if ray is None else run_on_ray(left, ray)
        for event in follow_jobs(console, events, describe, total=len(left)) if left else ():
            event.job.write(event.result)
    _report(console, out)


def _report(console: Console, out: Path) -> None:
    from rollsight.studies.directions import results as found

    results = found.read_results(out)
    text = found.markdown(results)
    output.write_texts(out, {"results.md": text})
    found.write_csv(results, out / "results.csv")
    output.print_text(console, text)
    output.print_files(console, [found.draw(results, out / "directions.png"), found.write(results, out / "index.html")])
