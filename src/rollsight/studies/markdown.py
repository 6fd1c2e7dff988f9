"""Tables in Markdown, and numbers in their cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from rollsight.analysis.intervals import Interval
from rollsight.escaping import markdown_cell


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. Texts in it, names of environments or what a model wrote, stay in their cells."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(markdown_cell, line))} |" for line in lines)


def numbers(values: Iterable[float]) -> list[str]:
    """Three digits; nothing where a value is not known."""
    return ["" if np.isnan(value) else f"{value:.3g}" for value in values]


def mean(interval: Interval, digits: str = ".3g", width: str = ".2g") -> str:
    """A mean ± its half-width, where it has one."""
    return f"{interval.value:{digits}}" + ("" if np.isnan(interval.low) else f" ± {interval.half_width:{width}}")


def bracketed(interval: Interval, value: str, ends: str) -> str:
    """A value [low, high]; one seed has no interval."""
    brackets = "" if np.isnan(interval.low) else f" [{interval.low:{ends}}, {interval.high:{ends}}]"
    return f"{interval.value:{value}}{brackets}"


def percent(share: Interval) -> str:
    """A share as per cent, with its interval where it has one; nothing where it is not known."""
    if np.isnan(share.value):
        return ""
    return bracketed(Interval(100 * share.value, 100 * share.low, 100 * share.high), ".1f", ".0f")
