"""A run's learning curve, as a study keeps it: one CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rollsight.arrays import Floats
from rollsight.runs import whole_file


@dataclass(frozen=True, eq=False)
class Curve:
    """What one run was evaluated to.

    columns: (R,) by name, over the evaluated rounds; `seconds` without evaluation.
    """

    columns: Mapping[str, Floats]

    def __getitem__(self, name: str) -> Floats:
        return self.columns[name]

    def at(self, chosen: Any) -> Curve:
        """The rows that a mask (R,) chooses."""
        return Curve({name: column[chosen] for name, column in self.columns.items()})


def read_curve(path: Path, phases: Sequence[str]) -> Curve:
    """The curve in a file; empty cells are nan. `seconds` is the sum of the phases."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}
    return Curve({**columns, "seconds": np.sum([columns[f"{phase}_s"] for phase in phases], axis=0)})


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as the text of a curve's file, with the last row's columns.

    Floats have five significant digits: the curves of a study are kept with its tables.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[-1]), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return out.getvalue()


def write_curve(path: Path, text: str) -> None:
    """Keep a curve; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(text, "utf-8")


def after_start(curve: Curve) -> Curve:
    """Without the evaluation before training."""
    return curve.at(curve["round"] > 0)


def files_by_seed(folder: Path) -> dict[int, Path]:
    """The curves in an arm's folder."""
    return {int(path.stem): path for path in sorted(folder.glob("*.csv"), key=lambda path: int(path.stem))}


def mean_of(curves: Iterable[Curve], name: str) -> float:
    """A column's mean over rounds and curves; nan where it is empty."""
    values = np.concatenate([curve[name] for curve in curves])
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def seconds_per_round(curves: Iterable[Curve], phase: str) -> float:
    """Processor seconds of a phase."""
    return float(np.mean([curve[f"{phase}_s"][-1] / curve["round"][-1] for curve in curves]))
