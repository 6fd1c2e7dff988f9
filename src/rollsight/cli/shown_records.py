"""How records are shown: one line each, whatever they are made of, or all of each one below the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from rollsight import conversations
from rollsight.cli.tables import Column, Grid, cell
from rollsight.escaping import visible

Row = Mapping[str, Any]

# Column: what the table calls it, and in what order it is left out where the width is short (0: never).
_OF_STEPS = {
    "rank": ("#", 0),
    "env": ("env", 0),
    "step": ("step", 0),
    "episode": ("episode", 90),
    "episode_step": ("its step", 100),
    "obs": ("obs", 20),
    "action": ("action", 10),
    "reward": ("reward", 30),
    "advantage": ("advantage", 40),
    "td_error": ("TD error", 40),
    "age": ("age", 70),
    "score": ("score", 0),
    "kept": ("kept", 80),
}
_OF_TEXTS = {
    "rank": ("#", 0),
    "group": ("group", 100),
    "score": ("score", 0),
    "reward": ("reward", 20),
    "kl": ("kl", 90),
    "kept": ("kept", 80),
    "prompt": ("prompt", 10),
    "completion": ("completion", 0),
}
_LONG = 64  # numbers of an observation; more are an image or the like, which no reader takes in as numbers
_READABLE = 20  # characters of a text that say something


def lines(console: Console, rows: Sequence[Row]) -> None:
    """Print the records as a table, a line each, and what of them is not in it."""
    if not rows:
        return
    texts = "completion" in rows[0]
    columns = list(_text_columns(rows) if texts else _step_columns(rows))
    console.print(Grid(columns, left_out="--full shows everything"))
    for name in () if texts else _observations(rows):
        if size := _size(rows, name):
            console.print(f"{visible(name)}: {size} numbers a record, not shown; --json has them", style="dim")


def in_full(console: Console, rows: Sequence[Row]) -> None:
    """Print everything the run stores of each record, one below the other; of long lists their size and range."""
    for row in rows:
        console.print(f"#{row['rank']}, score {cell(row['score'])}", style="bold")
        for part in _parts(row):
            console.print(part)


def observation(row: Row) -> str:
    """What a record has seen, in a few words: the entries of a dict by name."""
    seen = {name.removeprefix("obs."): row[name] for name in _observations([row]) if not _size([row], name)}
    return cell(seen["obs"]) if list(seen) == ["obs"] else cell(seen, 60) if seen else "that is not stored"


def _step_columns(rows: Sequence[Row]) -> Iterator[Column]:
    for name, (heading, expendable) in _OF_STEPS.items():
        if name == "obs":
            short = [one for one in _observations(rows) if not _size(rows, one)]
            for place, one in enumerate(short):  # entries of a dict but the first go before anything a reader compares
                yield Column(one, _column(rows, one), expendable + 30 + place if place else expendable)
        elif name in rows[0]:
            yield Column(heading, _column(rows, name), expendable)


def _text_columns(rows: Sequence[Row]) -> Iterator[Column]:
    for name, (heading, expendable) in _OF_TEXTS.items():
        values = _column(rows, name)
        if name in ("prompt", "completion"):
            shown = [conversations.on_one_line(value) if isinstance(value, str) else value for value in values]
            # Prompts begin alike and end in the question.
            yield Column(heading, shown, expendable, _READABLE, tail=2 / 3 if name == "prompt" else 1 / 3)
        elif name in rows[0]:
            yield Column(heading, values, expendable)


def _observations(rows: Sequence[Row]) -> list[str]:
    """The columns of observations: `obs`, or one for each entry of a dict, whose names may have a dot of their own."""
    names = [name for name in rows[0] if name == "obs" or name.startswith("obs.")]
    return [name for name in names if any(row[name] is not None for row in rows)]


def _size(rows: Sequence[Row], name: str) -> int:
    """How many numbers a long observation has; 0 for one that a table can show."""
    longest = max(len(value) if isinstance(value, list) else 1 for value in _column(rows, name))
    return longest if longest > _LONG else 0


def _column(rows: Sequence[Row], name: str) -> list[Any]:
    return [row.get(name) for row in rows]


def _parts(row: Row) -> Iterator[RenderableType]:
    rest = {name: value for name, value in row.items() if name not in ("rank", "score") and not _is_text(value)}
    width = max(map(len, rest), default=0)
    for name, value in rest.items():
        yield Padding(Text(f"{visible(name):<{width}}  {_whole(value)}"), (0, 0, 0, 2))
    for name, value in row.items():
        if not _is_text(value):
            continue
        yield Padding(Text(visible(name), style="bold"), (0, 0, 0, 2))
        for speaker, said in conversations.in_full(value):
            text = f"{speaker}: {said}" if speaker else said
            yield Padding(Text(visible(text, lines=True)), (0, 0, 0, 4))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> str:
    if isinstance(value, list) and len(value) > _LONG:
        numbers = [one for one in value if isinstance(one, int | float)]
        between = f" from {cell(min(numbers))} to {cell(max(numbers))}" if numbers else ""
        return f"{len(value)} numbers{between}"
    return cell(value, 10**6)
