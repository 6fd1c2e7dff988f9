"""Progress bars, and how many processes and threads a command uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import rich.progress
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

if TYPE_CHECKING:
    from rollsight.studies.runner import AJob, Progress

PHASES = "collect + score + train + evaluate"


def progress_bar(console: Console) -> rich.progress.Progress:
    """A bar for one long computation, gone when it is done; nothing where the console is no terminal."""
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
    ]
    columns += [TimeElapsedColumn(), TimeRemainingColumn(compact=True)]
    # Where it is no terminal, rich would leave an empty line.
    return rich.progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def round_bars(console: Console, phases: str = PHASES) -> rich.progress.Progress:
    """Bars of training rounds, each with its `detail`: what the last round says of itself, cut first where the terminal
    is narrow. phases: what the seconds in it belong to."""
    fixed, rest = partial(Column, no_wrap=True), Column(no_wrap=True, overflow="ellipsis", ratio=1)
    console.print(f"seconds of a round: {phases}", style="dim", highlight=False)
    return rich.progress.Progress(
        TextColumn("{task.description:<14}", markup=False, table_column=fixed(min_width=14)),
        BarColumn(bar_width=12, table_column=fixed(min_width=12)),
        MofNCompleteColumn(table_column=fixed(min_width=7)),
        TextColumn("{task.fields[detail]}", markup=False, table_column=rest),
        TimeRemainingColumn(compact=True, table_column=fixed(min_width=5)),
        console=console,
        expand=True,
    )


def say_jobs(console: Console, total: int, left: int, processes: int) -> None:
    """How many runs there are, and how many of them a former call has done."""
    console.print(f"{total} runs, {total - left} of them done; {processes} at once", highlight=False)


def follow_jobs(
    console: Console,
    events: Iterable[Progress[AJob]],
    describe: Callable[[Mapping[str, Any]], str],
    *,
    total: int | None = None,
    phases: str = PHASES,
) -> Iterator[Progress[AJob]]:
    """Draw a bar per running job, and one of all `total` where that is known; yield the events of finished
    jobs and say which were lost."""
    with round_bars(console, phases) as bars:
        whole = None if total is None else bars.add_task("all runs", total=total, detail="")
        running: dict[str, TaskID] = {}
        lost: list[str] = []
        for event in events:
            job = event.job
            if not event.finished:
                if job.name not in running:
                    running[job.name] = bars.add_task(job.name, total=job.rounds, detail="")
                bars.update(running[job.name], completed=event.rounds)
                if event.summary is not None:
                    bars.update(running[job.name], detail=describe(event.summary))
                continue
            if job.name in running:
                bars.remove_task(running.pop(job.name))
            if event.lost:
                lost.append(job.name)
            else:
                yield event
            if whole is not None:
                bars.advance(whole)
    if lost:
        console.print(
            f"{', '.join(lost)}: no result, the process was killed twice (out of memory, mostly); the other runs are "
            "kept. Run fewer processes at once.",
            style="yellow",
            markup=False,
            highlight=False,
        )


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_one_thread() -> None:
    """One thread for PyTorch: the networks are small, and spinning threads slow a shared machine down many times."""
    import torch

    torch.set_num_threads(1)
