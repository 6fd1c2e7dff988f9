"""One check: what it measures, from which value on it speaks, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from rollsight.doctor.evidence import Evidence
from rollsight.doctor.finding import Severity, Sure, Where


@dataclass(frozen=True)
class Measured:
    """What a check saw.

    value: the larger, the worse.
    figures: what the sentence names.
    where: what the value is about.
    """

    value: float
    figures: Mapping[str, float] = field(default_factory=dict)
    where: Where = field(default_factory=Where)


Measure: TypeAlias = Callable[[Evidence], "Measured | None"]
"""None: there is not enough to look at. Raises `Missing` for a column that is not there."""


@dataclass(frozen=True)
class Check:
    """A pure function of the evidence, with its thresholds and its words.

    name: as in the documentation.
    family: its page there.
    measure: what it computes from the evidence.
    warning: the value from which on it is a warning; higher warns later, infinity never.
    severe: the value from which on it is severe; infinity for never.
    sure: how sure it is of the cause, where it speaks.
    says: the sentence, with names of figures in braces.
    causes: likely ones, the likeliest first.
    tries: what to try, the likeliest first.
    records: whether it looks at records, not at summaries alone.
    explained_by: checks that name a cause of what this one sees.
    """

    name: str
    family: str
    measure: Measure
    warning: float
    severe: float
    sure: Sure
    says: str
    causes: tuple[str, ...]
    tries: tuple[str, ...]
    records: bool = True
    explained_by: tuple[str, ...] = ()

    def severity(self, value: float) -> Severity | None:
        """None: it says nothing."""
        if value >= self.severe:
            return "severe"
        return "warning" if value >= self.warning else None
