"""One figure of an arm over seeds, and how it differs from the standard arm's on the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from rollsight.analysis.intervals import Interval, t_interval
from rollsight.analysis.learning_curves import final_return
from rollsight.studies import markdown
from rollsight.studies.curves import Curve
from rollsight.studies.results import row

Measure: TypeAlias = Callable[[Curve], float]


@dataclass(frozen=True)
class Compared:
    """A mean over seeds, and its difference to the standard's.

    value: mean and interval over seeds.
    difference: paired, on common seeds; None where there is none.
    """

    value: Interval
    difference: Interval | None

    def __str__(self) -> str:
        both = "" if self.difference is None else f" ({markdown.mean(self.difference, '+.3g')})"
        return markdown.mean(self.value) + both


def compared(values: Sequence[float], pairs: Sequence[tuple[float, float]]) -> Compared:
    """values: of an arm's seeds; pairs: (the standard's, the arm's) of the common seeds."""
    return Compared(t_interval(values), t_interval([mine - standard for standard, mine in pairs]) if pairs else None)


def compare(measure: Measure, curves: Mapping[int, Curve], standard: Mapping[int, Curve]) -> Compared:
    """What is measured of an arm's curves, by seed, against the standard's; empty where there is none."""
    values = {seed: measure(curve) for seed, curve in curves.items()}
    pairs = [(measure(standard[seed]), value) for seed, value in values.items() if seed in standard]
    return compared(list(values.values()), pairs)


def end(curve: Curve, name: str) -> float:
    """A column's mean over the evaluations of the last tenth of the rounds, at least the last one."""
    return final_return(curve["round"].astype(np.int64), curve[name])


def figures(named: Mapping[str, Compared]) -> Iterator[dict[str, object]]:
    """Rows of a long table: measure, value, low, high; differences are named so."""
    for name, found in named.items():
        yield row(name, found.value)
        if found.difference is not None:
            yield row(f"{name}_difference", found.difference)
