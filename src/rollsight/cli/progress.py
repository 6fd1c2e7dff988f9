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
    """A bar for one long computation, gone when it is done; nothing where the console is not a terminal."""
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
    ]
    columns += [TimeElapsedColumn(), TimeRemainingColumn(compact=True)]
    # Where it is not a terminal, rich would leave an empty line.
    return rich.progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def round_bars(console: Console, phases: str = PHASES) -> rich.progress.Progress:
    """Bars of training rounds, each with its `detail`: what the last round says of itself, cut first where the terminal
    is narrow. phases: what the seconds in it belong to; empty where it has none."""
    fixed, rest = partial(Column, no_wrap=True), Column(no_wrap=True, overflow="ellipsis", ratio=1)
    if phases:
        console.print(f"seconds of a round: {phases}", style="dim", highlight=False)
    return rich.progress.Progress(
        TextColumn("{task.description:<14}", markup=False, table_column=fixed(min_width=14)),
        BarColumn(bar_width=12, table_column=fixed(min_width=12)),
        MofNCompleteColumn(table_column=fixed(min_width=7)),
        TextColumn("{task.fields[detail]}", markup=False, table_column=rest),
        TimeRemainingColumn(compact=True, table_column=fixed(min_width=5)),
        console=console,
        expand=True,
        speed_estimate_period=1e9,  # of all rounds: within rich's 30 seconds there may be no two of them
    )


class RoundBars:
    """The bar of a run's rounds, and below it one of what the present round is doing. Between rounds the first one
    moves by the seconds that each phase took in the round before, at first by `weights`, so that it soon knows how much
    time is left.

    weights: a round's phases in their order, with rough shares of its time; names: what the phases are called.
    """

    def __init__(
        self,
        bars: rich.progress.Progress,
        description: str,
        *,
        total: int,
        done: int,
        weights: Mapping[str, float],
        names: Mapping[str, str],
    ) -> None:
        self._bars, self._done, self._weights, self._names = bars, done, dict(weights), names
        self._whole = bars.add_task(description, total=total, completed=done, detail="")
        self._phase = bars.add_task("loading", total=None, detail="model, prompts and reward")
        self._now, self._reached = "", 0.0

    def follow(self, phase: str, done: int, total: int, name: str | None = None) -> None:
        """How far a phase is; name: what to call it now."""
        if phase != self._now:
            self._bars.reset(self._phase, total=total, detail="")
            self._now = phase
        self._bars.update(self._phase, description=name or self._names[phase], completed=done, total=total)
        if phase in self._weights:
            before = sum(list(self._weights.values())[: list(self._weights).index(phase)])
            share = (before + self._weights[phase] * done / total) / sum(self._weights.values())
            self._reached = max(self._reached, share)  # phases that take turns do not go back
            self._bars.update(self._whole, completed=self._done + min(self._reached, 1))

    def finish(self, round: int, seconds: Mapping[str, float], detail: str) -> None:
        """A round is over: how long each phase took, and what to say of it."""
        if sum(seconds.values()) > 0:
            self._weights = {phase: seconds.get(phase, 0.0) for phase in self._weights}
        self._done, self._reached = round, 0.0
        self._bars.update(self._whole, completed=round, detail=detail)

    def end(self) -> None:
        """Nothing more is done: the lower bar goes."""
        self._bars.remove_task(self._phase)


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
    jobs and say which were lost. Where the console is not a terminal, a line for each finished job."""
    finished = 0
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
            finished += 1
            if whole is not None:
                bars.advance(whole)
            if not console.is_terminal:
                of = "" if total is None else f" of {total}"
                ending = ", without a result" if event.lost else ""
                console.print(f"{finished}{of} runs done: {job.name}{ending}", markup=False, highlight=False)
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
