"""The study of a verifiable reward."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rollsight.studies import completions
from rollsight.studies.cells import KEYS
from rollsight.studies.grpo import figures, tables
from rollsight.studies.grpo.arms import GRPOArm
from rollsight.studies.grpo.results import Results, read_results, rows
from rollsight.studies.study import Study


def _texts(folder: Path, results: Results, round: int | None) -> Mapping[str, str]:
    return {"completions.md": completions.page(folder, [one for one in results.arms if one.arm.scored], round)}


STUDY = Study(
    "grpo",
    KEYS,
    GRPOArm,
    read_results,
    tables.markdown,
    rows,
    figures.pictures,
    _texts,
    ("results.md", "results.csv", "completions.md", "curves.png", "index.html"),
)
