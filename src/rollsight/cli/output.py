"""How the commands print: one console that shows foreign text as it stands, JSON, and files that replace nothing."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Span, Text

from rollsight import runs
from rollsight.cli.tables import Column, Grid
from rollsight.cli.tables import cell as cell
from rollsight.errors import RollsightError
from rollsight.escaping import visible, visible_json


def print_json(value: Any) -> None:
    """Print strict JSON on standard output: NaN and infinities as null."""
    print(_json(value))


def write_json(path: Path, value: Any) -> None:
    """Write the same to a file."""
    with runs.whole_file(path) as temporary:
        temporary.write_text(_json(value) + "\n", "utf-8")


def _json(value: Any) -> str:
    plain = runs.jsonable(value, non_finite_as_null=True)
    return visible_json(json.dumps(plain, indent=2, allow_nan=False, ensure_ascii=False))


def figure_files(figure: Path | None, out: Path | None, name: str) -> list[Path]:
    """The files to draw: the one asked for, and in the folder a picture and an interactive page."""
    inside = [] if out is None else [out / f"{name}.png", out / f"{name}.html"]
    return inside if figure is None else [figure, *inside]


def check_free(
    files: Sequence[Path], *, overwrite: bool, advice: str = "choose another file, or add --overwrite"
) -> None:
    """Make sure, before any work, that writing these files takes nothing away.

    Raises:
        RollsightError: one of them exists and `overwrite` is not given (`advice` says what to do), or lies in a run
            folder, by whatever way its name leads there: only training writes to those.
    """
    for path in files:
        if path.is_dir():
            raise RollsightError(f"{path} is a folder: choose another file")
        if inside := next((folder for folder in path.resolve().parents if runs.is_run(folder)), None):
            raise RollsightError(
                f"{path} lies in the run folder {inside}, which only training writes to: choose another place"
            )
        if not overwrite and os.path.lexists(path):
            raise RollsightError(f"{path} exists already: {advice}")


def print_text(target: Console, text: str) -> None:
    """Print a text of several lines, Markdown tables above all."""
    target.print(text, soft_wrap=True)


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files by name, those that are not empty; each appears whole or not at all."""
    for name, text in ((name, text) for name, text in texts.items() if text):
        with runs.whole_file(folder / name) as temporary:
            temporary.write_text(visible(text, lines=True), "utf-8")


def print_next_steps(target: Console, folder: Path) -> None:
    """Where a run is, and the commands that look at it."""
    steps = {
        "run folder": str(folder),
        "look at it": command("view", folder),
        "what is wrong": command("doctor", folder),
        "what hurt most": command("top", folder, "--bottom"),
    }
    for name, text in steps.items():
        target.print(f"{name + ':':<16}{text}", soft_wrap=True)


def print_files(target: Console, files: Sequence[Path]) -> None:
    """Say where figures were written."""
    for path in files:
        target.print(f"figure: {visible(str(path))}", soft_wrap=True)


def command(*words: str | Path) -> str:
    """A `rollsight` command as one pastes it into a shell."""
    # A folder whose name starts with a dash would be taken for an option.
    safe = (f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words)
    return visible(shlex.join(["rollsight", *safe]))


class PlainConsole(Console):
    """A console for foreign text. Nothing in a text is markup, and characters that would steer the terminal are spelt
    out, whichever way a text comes: as a string, as a `Text`, in a table or a progress bar."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **how: Any) -> Text:
        how |= {"markup": False, "emoji": False, "highlight": False}
        return super().render_str(visible(text, lines=True), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Any:
        return super().render(_plain(renderable) if isinstance(renderable, Text) else renderable, options)


def _plain(text: Text) -> Text:
    """The text with its styles, spelt out where it is not plain."""
    if (spelt := visible(text.plain, lines=True)) == text.plain:
        return text

    def place(index: int) -> int:
        return len(visible(text.plain[:index], lines=True))

    how: dict[str, Any] = {name: getattr(text, name) for name in ("style", "justify", "overflow", "no_wrap", "end")}
    return Text(spelt, spans=[Span(place(one.start), place(one.end), one.style) for one in text.spans], **how)


def console(*, stderr: bool = False) -> Console:
    """Standard output, 100 columns wide where it is not a terminal, whatever the reader's is; or standard error."""
    stream = sys.stderr if stderr else sys.stdout
    return PlainConsole(stderr=stderr, width=None if stream.isatty() or "COLUMNS" in os.environ else 100)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> Grid:
    """A table of values, numbers to the right. Where it is too wide, texts and lists are cut, numbers never."""
    values = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    return Grid([Column(name, list(column)) for name, column in zip(columns, values, strict=True)], title)


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> Table:
    """A table whose texts are shown in full, over several lines where they are long."""
    grid = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", expand=True, pad_edge=False
    )
    for index, column in enumerate(columns):
        long = any(isinstance(row[index], str) for row in rows)
        grid.add_column(Text(column), justify="left" if long else "right", ratio=1 if long else None, no_wrap=not long)
    for row in rows:
        shown = (visible(value.strip(), lines=True) if isinstance(value, str) else cell(value) for value in row)
        grid.add_row(*map(Text, shown), end_section=True)
    return grid


def print_rows(target: Console, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows as a table, or, where they are too many columns for the width, one below the other."""
    grid = table(columns, rows)
    if grid.natural_width <= target.width:
        target.print(grid)
        return
    for block in grid.blocks(target.width):
        target.print(block)
