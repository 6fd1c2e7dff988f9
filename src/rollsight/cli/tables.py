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

_CELL = 32  # characters of a long value that `cell` shows
_ENTRIES = 64  # of a list that any table shows
_WHOLE = 24  # a text up to this length with a digit in it is a figure, such as 11.0 ± 2.5, and is not cut


def cell(value: Any, width: int = _CELL, *, tail: float = 1 / 3) -> str:
    """A value on one line of at most `width` columns: four significant digits, null as a dash. Of a long text the
    beginning and the end are shown (`tail`: the end's share), of a long list the first entries with two digits."""
    text = _spell(value)
    if cell_len(text) <= width:
        return text
    return _cut_list(value, width) if isinstance(value, list | tuple) else cut(text, width, tail)


def cut(text: str, width: int, tail: float = 1 / 3) -> str:
    """A text of at most `width` columns, without its middle."""
    if cell_len(text) <= width:
        return text
    end = int((width - 1) * tail)
    return f"{_head(text, width - 1 - end)}…{_head(text[::-1], end)[::-1]}"


def _head(text: str, width: int) -> str:
    """As much of the beginning as has this width; a wide character is two columns."""
    text = text[: max(width, 0)]
    while cell_len(text) > width:
        text = text[:-1]
    return text


def _cut_list(values: Sequence[Any], width: int) -> str:
    shown = ""
    for value in values:
        longer = f"{shown}{_spell(value, digits=2)}, "
        if cell_len(longer) + 3 > width:
            break
        shown = longer
    return f"[{shown}…]"


def _spell(value: Any, digits: int = 4) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.{digits}g}" if value == 0 or not 10**digits <= abs(value) < 1e15 else f"{value:.0f}"
        case list() | tuple():
            # A long list is an image or a large state: its beginning says enough, and formatting all of it is slow.
            more = ["…"] if len(value) > _ENTRIES else []
            return "[" + ", ".join([*(_spell(item) for item in value[:_ENTRIES]), *more]) + "]"
        case dict():
            return ", ".join(f"{_spell(key)}={_spell(item)}" for key, item in value.items())
    return visible(str(value))


@dataclass(frozen=True)
class Column:
    """A column of a table.

    heading: its title.
    values: one for each row.
    expendable: 0 for a column that is always shown; of the others the highest is left out first.
    readable: characters that a text or list keeps at least where it is cut.
    tail: the share of a text's end in them.
    """

    heading: str
    values: Sequence[Any]
    expendable: int = 0
    readable: int = 11
    tail: float = 1 / 3

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
        others = min(self.widest, self.readable)
        least = max([others, *(cell_len(cell(value, 10**6)) for value in figures)])
        return max(heading, least), max(heading, self.widest)


def _is_figure(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _WHOLE and any(character.isdigit() for character in value)


@dataclass(frozen=True)
class Grid:
    """A table as rich prints it, fitted to the width it is given. Where even the columns that must be there do not fit,
    one row stands below the other.

    columns: the columns, left to right.
    title: above the table; None for none.
    left_out: text before the names of columns that were left out.
    """

    columns: Sequence[Column]
    title: str | None = None
    left_out: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        if self.natural_width <= width:
            yield _table(self.columns, [column.widths[1] for column in self.columns], self.title, gap=2)
            return
        shown = _most_important(self.columns, width)
        if shown is None:
            yield from self.blocks(width)
            return
        yield _table(shown, _widths(shown, width), self.title, gap=1)
        if self.left_out and (gone := [visible(one.heading) for one in self.columns if one not in shown]):
            yield Text(f"left out: {', '.join(gone)}; {self.left_out}", style="dim")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)

    @property
    def natural_width(self) -> int:
        """What it needs to show everything, with two spaces between columns and one at the end."""
        return sum(column.widths[1] + 2 for column in self.columns) - 1

    def blocks(self, width: int) -> Iterable[Table]:
        """A table for each row, one below the other."""
        names = [visible(column.heading) for column in self.columns]
        left = min(max(map(cell_len, ["column", *names]), default=0), max(width // 2, 6))
        for index in range(max((len(column.values) for column in self.columns), default=0)):
            title = self.title if index == 0 else None
            values = Column(f"row {index + 1}", [column.values[index] for column in self.columns])
            right = min(values.widths[1], max(width - left - 2, 8))
            yield _table([Column("column", names), values], [left, right], title, gap=2)


def _most_important(columns: Sequence[Column], width: int) -> list[Column] | None:
    """As many of the columns as fit; None where even those that must be there do not."""
    shown = list(columns)
    while sum(column.widths[0] for column in shown) + len(shown) - 1 > width:
        least = max(shown, key=lambda column: column.expendable)
        if least.expendable == 0:
            return None
        shown.remove(least)
    return shown


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    """Of columns that fit with a space between them: the narrowest of those that can use more gets more first."""
    widths, most = [column.widths[0] for column in columns], [column.widths[1] for column in columns]
    for _ in range(width - len(columns) + 1 - sum(widths)):
        growing = [index for index in range(len(columns)) if widths[index] < most[index]]
        if growing:
            widths[min(growing, key=widths.__getitem__)] += 1
    return widths


def _table(columns: Sequence[Column], widths: Sequence[int], title: str | None, gap: int) -> Table:
    grid = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, gap - 1, 0, 0),  # and a space of the box
    )
    for column, width in zip(columns, widths, strict=True):
        heading = Text(cut(visible(column.heading), width), no_wrap=True)
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        grid.add_column(heading, justify=justify, width=width, no_wrap=True)
    for row in zip(*(column.values for column in columns), strict=True):
        cells = zip(row, widths, columns, strict=True)
        grid.add_row(*(Text(cell(value, width, tail=column.tail)) for value, width, column in cells))
    return grid
