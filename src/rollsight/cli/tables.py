"""Tables that fit the terminal: texts and lists are cut, then less important columns left out, numbers never cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rollsight.escaping import visible

_CELL = 32  # characters of a long value that `cell` shows, and entries of a list that any table does
_NARROW = 10  # characters that a cut text or list keeps at least
_WHOLE = 24  # a text up to this length with a digit in it is a figure, such as 11.0 ± 2.5, and is not cut


def cell(value: Any, width: int = _CELL) -> str:
    """A value on one line of at most `width` characters: four significant digits, null as a dash. Long texts are cut in
    the middle, long lists between their entries."""
    text = _spell(value)
    if cell_len(text) <= width:
        return text
    if isinstance(value, list | tuple):
        return _cut_list(value, width)
    return cut(text, width)


def cut(text: str, width: int) -> str:
    """A text of at most `width` columns: its beginning and its end, which both say much of a prompt or completion."""
    if cell_len(text) <= width:
        return text
    tail = (width - 1) // 3
    return f"{_head(text, width - 1 - tail)}…{_head(text[::-1], tail)[::-1]}"


def _head(text: str, width: int) -> str:
    """As much of the beginning as has this width; a wide character is two columns."""
    text = text[: max(width, 0)]
    while cell_len(text) > width:
        text = text[:-1]
    return text


def _cut_list(values: Sequence[Any], width: int) -> str:
    shown = ""
    for value in values:
        longer = f"{shown}{_spell(value)}, "
        if cell_len(longer) + 3 > width:
            break
        shown = longer
    return f"[{shown}…]"


def _spell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}" if value == 0 or not 1e4 <= abs(value) < 1e15 else f"{value:.0f}"
        case list() | tuple():
            # A long list is an image or a large state: its beginning says enough, and formatting all of it is slow.
            more = ["…"] if len(value) > _CELL else []
            return "[" + ", ".join([*(_spell(item) for item in value[:_CELL]), *more]) + "]"
        case dict():
            return ", ".join(f"{_spell(key)}={_spell(item)}" for key, item in value.items())
    return visible(str(value))


@dataclass(frozen=True)
class Column:
    """A column of a table. expendable: 0 for one that is always shown; of the others the highest is left out first."""

    heading: str
    values: Sequence[Any]
    expendable: int = 0

    @property
    def numeric(self) -> bool:
        return all(isinstance(value, int | float | None) for value in self.values)

    @property
    def widest(self) -> int:
        """The width that shows everything."""
        return max((cell_len(cell(value, 10**6)) for value in self.values), default=0)

    @property
    def widths(self) -> tuple[int, int]:
        """The least width, below which figures would be cut, and the one that shows everything."""
        heading = cell_len(visible(self.heading))
        figures = [
            value for value in self.values if not isinstance(value, str | list | tuple | dict) or _is_figure(value)
        ]
        others = min(self.widest, _NARROW)
        least = max([others, *(cell_len(cell(value, 10**6)) for value in figures)])
        return max(heading, least), max(heading, self.widest)


def _is_figure(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _WHOLE and any(character.isdigit() for character in value)


@dataclass(frozen=True)
class Grid:
    """A table as rich prints it, fitted to the width it is given. Where even the columns that must be there do not fit,
    one row stands below the other. left_out: said with the names of columns that were left out."""

    columns: Sequence[Column]
    title: str | None = None
    left_out: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, widths = self._fit(options.max_width)
        if widths is None:
            yield from self.blocks(options.max_width)
            return
        yield _table(shown, widths, self.title)
        if self.left_out and (gone := [visible(one.heading) for one in self.columns if one not in shown]):
            yield Text(f"left out: {', '.join(gone)}; {self.left_out}", style="dim")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)

    @property
    def natural_width(self) -> int:
        """What it needs to show everything."""
        return sum(column.widths[1] for column in self.columns) + max(len(self.columns) - 1, 0)

    def blocks(self, width: int) -> Iterable[Table]:
        """A table for each row, one below the other."""
        names = [visible(column.heading) for column in self.columns]
        left = min(max(map(cell_len, ["column", *names]), default=0), max(width // 2, 6))
        for index in range(max((len(column.values) for column in self.columns), default=0)):
            title = self.title if index == 0 else None
            values = Column(f"row {index + 1}", [column.values[index] for column in self.columns])
            right = min(values.widths[1], max(width - left - 1, 8))
            yield _table([Column("column", names), values], [left, right], title)

    def _fit(self, width: int) -> tuple[list[Column], list[int] | None]:
        """The columns to show and their widths; no widths where even the most important do not fit."""
        shown = list(self.columns)
        while sum(column.widths[0] for column in shown) + len(shown) - 1 > width:
            least = max(shown, key=lambda column: column.expendable, default=None)
            if least is None or least.expendable == 0:
                return shown, None
            shown.remove(least)
        bounds = [column.widths for column in shown]
        return shown, _shared([low for low, _ in bounds], [high for _, high in bounds], width - len(shown) + 1)


def _shared(low: list[int], high: list[int], width: int) -> list[int]:
    """Widths between the bounds that sum up to at most `width`: the narrowest of what can grow grows first."""
    widths = list(low)
    spare = width - sum(widths)
    while spare > 0 and (growing := [i for i in range(len(widths)) if widths[i] < high[i]]):
        smallest = min(growing, key=lambda i: widths[i])
        widths[smallest] += 1
        spare -= 1
    return widths


def _table(columns: Sequence[Column], widths: Sequence[int], title: str | None) -> Table:
    grid = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    # rich counts a space after the last column too, and fills it with the column.
    for column, width, space in zip(columns, widths, [0] * (len(widths) - 1) + [1], strict=True):
        heading = Text(cut(visible(column.heading), width), no_wrap=True)
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        grid.add_column(heading, justify=justify, width=max(width - space, 1), no_wrap=True)
    for row in zip(*(column.values for column in columns), strict=True):
        grid.add_row(*(Text(cell(value, width)) for value, width in zip(row, widths, strict=True)))
    return grid
