"""A run's learning curve, and what is read off it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollsight.arrays import Floats
from rollsight.studies.store import Columns


@dataclass(frozen=True, eq=False)
class Curve:
    """What one run was evaluated to.

    columns: (R,) by name, over the evaluated rounds; `seconds` without evaluation.
    """

    columns: Mapping[str, Floats]

    @classmethod
    def of(cls, columns: Columns, phases: Sequence[str]) -> Curve:
        """Of what is stored. phases: those whose seconds add up to the training time."""
        numbers = {name: column.astype(np.float64) for name, column in columns.items()}
        return cls({**numbers, "seconds": np.sum([numbers[f"{phase}_s"] for phase in phases], axis=0)})

    def __getitem__(self, name: str) -> Floats:
        return self.columns[name]

    def at(self, chosen: Any) -> Curve:
        """The rows that a mask (R,) chooses."""
        return Curve({name: column[chosen] for name, column in self.columns.items()})


def after_start(curve: Curve) -> Curve:
    """Without the evaluation before training."""
    return curve.at(curve["round"] > 0)


def mean_of(curves: Iterable[Curve], name: str) -> float:
    """A column's mean over rounds and curves; nan where it is empty."""
    values = np.concatenate([curve[name] for curve in curves])
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def seconds_per_round(curves: Iterable[Curve], phase: str) -> float:
    """Processor seconds of a phase."""
    return float(np.mean([curve[f"{phase}_s"][-1] / curve["round"][-1] for curve in curves]))
