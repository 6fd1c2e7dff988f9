"""Progress bars, and how many processes and threads a command uses."""

from __future__ import annotations

import os
from functools import partial

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column


def progress_bar(console: Console) -> Progress:
    """A bar for one long computation, gone when it is done; nothing where the console is no terminal."""
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn()]
    columns += [TimeElapsedColumn(), TimeRemainingColumn(compact=True)]
    # Where it is no terminal, rich would leave an empty line.
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def round_bars(console: Console, phases: str = "collect + score + train + evaluate") -> Progress:
    """Bars of training rounds, each with its `detail`: what the last round says of itself, cut first where the terminal
    is narrow. phases: what the seconds in it belong to."""
    fixed, rest = partial(Column, no_wrap=True), Column(no_wrap=True, overflow="ellipsis", ratio=1)
    console.print(f"seconds of a round: {phases}", style="dim", highlight=False)
    return Progress(
        TextColumn("{task.description:<14}", table_column=fixed(min_width=14)),
        BarColumn(bar_width=12, table_column=fixed(min_width=12)),
        MofNCompleteColumn(table_column=fixed(min_width=7)),
        TextColumn("{task.fields[detail]}", table_column=rest),
        TimeRemainingColumn(compact=True, table_column=fixed(min_width=5)),
        console=console,
        expand=True,
    )


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_one_thread() -> None:
    """One thread for PyTorch: the networks are small, and spinning threads slow a shared machine down many times."""
    import torch

    torch.set_num_threads(1)
