"""The detoxification study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rollsight.studies import completions
from rollsight.studies.cells import KEYS
from rollsight.studies.rlhf import figures, tables
from rollsight.studies.rlhf.arms import RLHFArm
from rollsight.studies.rlhf.results import Results, read_results, rows
from rollsight.studies.study import Study


def _texts(folder: Path, results: Results, round: int | None) -> Mapping[str, str]:
    return {"generations.md": completions.page(folder, [one for one in results.arms if one.arm.scored], round)}


STUDY = Study(
    "rlhf",
    KEYS,
    RLHFArm,
    read_results,
    tables.markdown,
    rows,
    figures.pictures,
    _texts,
    ("results.md", "results.csv", "generations.md", "curves.png", "index.html"),
)
