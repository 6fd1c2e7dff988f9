"""What the commands of all studies do: run what is not done, keep it, and write tables, figures and a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from rollsight.cli import output
from rollsight.cli.progress import PHASES, cores, follow_jobs, say_jobs
from rollsight.cli.train import describe
from rollsight.errors import OptionError, RollsightError

if TYPE_CHECKING:
    from rollsight.studies.runner import Progress
    from rollsight.studies.study import ACell, Study

# Fields become options without a prefix, and their errors are not wrapped.
FLAT = arg(name="")


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """The options that all studies have."""

    seeds: int | None = 3
    """Number of seeds; all arms share them."""
    first_seed: int = 0
    """The first of them."""
    processes: Annotated[int | None, arg(help_behavior_hint="(default: the cores)")] = None
    """Runs side by side, one thread each."""
    ray: Annotated[str | None, arg(metavar="ADDRESS", help_behavior_hint="")] = None
    """Spread the runs over the Ray cluster at this address; local starts one here."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/study")
    """Folder of the study: curves.parquet, settings.json, results.md, results.csv, figures, index.html."""
    only_report: bool = False
    """Run nothing; write tables and figures of what the folder holds."""
    against: Annotated[str | None, arg(metavar="ARM", help_behavior_hint="(default: each arm's standard)")] = None
    """Run and write nothing; print the tables with every arm compared with this one."""

    def __post_init__(self) -> None:
        for name, value in (("seeds", self.seeds), ("processes", self.processes)):
            if value is not None and value < 1:
                raise OptionError(f"{{{name}}} is not possible: give at least 1", **{name: value})

    def all_seeds(self, usual: int = 3) -> range:
        """usual: how many, where it is not said."""
        return range(self.first_seed, self.first_seed + (self.seeds or usual))


def run_and_report(
    study: Study[Any, Any],
    options: StudyOptions,
    cells: Callable[[], Sequence[ACell]],
    *,
    describe: Callable[[Mapping[str, Any]], str] = describe,
    phases: str = PHASES,
    show_round: int | None = None,
) -> None:
    """Do what the options say.

    cells: all runs of the study, after their options are checked and their settings are kept; asked where there is
    something to run. describe, phases: how progress shows a round. show_round: whose completions are shown.
    """
    console, out = output.console(), options.out
    if options.against is not None:
        output.print_text(console, study.markdown(study.read(out, study.arms.of(options.against))))
        return
    if not options.only_report:
        files = [out / name for name in study.files]
        output.check_free(files, overwrite=study.started(out), advice="choose another --out")
        wanted = cells()
        left = study.left(wanted, out)
        at_once = options.processes or cores()
        say_jobs(console, len(wanted), len(left), at_once)
        if left:
            for event in follow_jobs(
                console, _events(left, at_once, options.ray), describe, total=len(left), phases=phases
            ):
                study.keep(event.job, event.result, out)
        study.gather(out)
    results = study.read(out, None)
    texts, pictures = study.write(out, results, show_round)
    output.write_texts(out, texts)
    output.print_text(console, texts["results.md"])
    output.print_files(console, pictures)


def require(module: str) -> None:
    """Load what the runs need, before any of them starts.

    Raises:
        RollsightError: a package is missing.
    """
    try:
        import_module(module)
    except ImportError as error:
        raise RollsightError(str(error)) from error


def _events(cells: Sequence[ACell], processes: int, ray: str | None) -> Iterator[Progress[ACell]]:
    from rollsight.studies.ray_cluster import run_on_ray
    from rollsight.studies.runner import run_jobs

    return run_jobs(cells, processes) if ray is None else run_on_ray(cells, ray)
