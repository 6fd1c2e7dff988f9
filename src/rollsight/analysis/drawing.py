"""What all pictures share: the palette, the formats, and how a file is written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rollsight.errors import RollsightError
from rollsight.runs import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, RED, GREY, AMBER, GREEN, PINK = "#2f6f9f", "#c8553d", "#8a8f98", "#c98a2b", "#3c8d5a", "#d1006c"
SHADES = ("#f3e3c8", "#d9e7f3", "#deeddb")  # the paper's three phases

STILL = ("png", "pdf", "svg")
ALL = (*STILL, "html")  # an interactive page


def check_figure(path: Path, formats: Sequence[str] = ALL) -> None:
    """Raise `RollsightError` where the name does not end as a figure's."""
    if _suffix(path) not in formats:
        raise RollsightError(f"{path} is not a figure file: end it in .{', .'.join(formats)}")


def is_page(path: Path) -> bool:
    """Whether the name is that of an interactive page."""
    return _suffix(path) == "html"


def new_figure(width: float, height: float) -> Figure:
    """A matplotlib figure of this size in inches."""
    from matplotlib.figure import Figure  # a second to import; not pyplot: no window, no global state

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a matplotlib figure in the format that its name says.

    Raises:
        RollsightError: the file cannot be written.
    """
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=_suffix(path), dpi=150)
    return path


def _suffix(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")
