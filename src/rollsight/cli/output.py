"""How the commands print: tables that fit the terminal, and JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rollsight.runs import jsonable, whole_file

_CELL = 32  # characters of a long value that are shown


def print_json(value: Any) -> None:
    """Print strict JSON on standard output: NaN and infinities as null."""
    print(_json(value))


def write_json(path: Path, value: Any) -> None:
    """Write the same to a file."""
    with whole_file(path) as temporary:
        temporary.write_text(_json(value) + "\n", "utf-8")


def _json(value: Any) -> str:
    return json.dumps(jsonable(value, non_finite_as_null=True), indent=2, allow_nan=False, ensure_ascii=False)


def figure_files(figure: Path | None, out: Path | None, name: str) -> list[Path]:
    """The files to draw: the one asked for, and in the folder a picture and an interactive page."""
    inside = [] if out is None else [out / f"{name}.png", out / f"{name}.html"]
    return inside if figure is None else [figure, *inside]


def print_text(target: Console, text: str) -> None:
    """Print a text as it stands, Markdown tables above all."""
    target.print(text, highlight=False, soft_wrap=True, markup=False)


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files by name, those that are not empty; each appears whole or not at all."""
    for name, text in ((name, text) for name, text in texts.items() if text):
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, "utf-8")


def print_files(target: Console, files: Sequence[Path]) -> None:
    """Say where figures were written."""
    for path in files:
        target.print(f"figure: {path}", soft_wrap=True)


def console() -> Console:
    """Standard output; 100 columns wide where it is no terminal, whatever the reader's terminal."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100, highlight=False)


def cell(value: Any) -> str:
    """A value in a few characters: four significant digits, long lists and texts shortened, null as a dash."""
    text = _text(value)
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"


def _text(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}" if value == 0 or not 1e4 <= abs(value) < 1e15 else f"{value:.0f}"
        case list() | tuple():
            # A long list is an image or a large state: its beginning says enough, and formatting all of it is slow.
            return "[" + ", ".join(_text(item) for item in value[:_CELL]) + "]"
        case dict():
            return ", ".join(f"{key}={_text(item)}" for key, item in value.items())
    return str(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> Table:
    """A table of values, numbers to the right. Where it is too wide, texts and lists are cut, numbers last."""
    style: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "header_style": "bold"}
    grid = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), **style)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float | None) for row in rows)
        grid.add_column(Text(column), justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        grid.add_row(*(Text(cell(value), no_wrap=True, overflow="ellipsis") for value in row))
    return grid


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> Table:
    """A table whose texts are shown in full, over several lines where they are long."""
    grid = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", expand=True, pad_edge=False
    )
    for index, column in enumerate(columns):
        long = any(isinstance(row[index], str) for row in rows)
        grid.add_column(Text(column), justify="left" if long else "right", ratio=1 if long else None, no_wrap=not long)
    for row in rows:
        grid.add_row(
            *(Text(value.strip() if isinstance(value, str) else cell(value)) for value in row), end_section=True
        )
    return grid


def print_rows(target: Console, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows as a table, or, where they are too many columns for the width, one below the other."""
    grid = table(columns, rows)
    if target.measure(grid, options=target.options.update(max_width=10_000)).maximum <= target.width:
        target.print(grid)
        return
    for number, row in enumerate(rows, 1):
        target.print(table(["column", f"row {number}"], list(zip(columns, row, strict=True))))
