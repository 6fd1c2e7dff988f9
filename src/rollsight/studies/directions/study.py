"""The study of update directions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rollsight.studies.directions.results import KEYS, Directions, draw, read_results, rows, tables, write
from rollsight.studies.ppo_arms import PPOArm
from rollsight.studies.study import Study


def _pictures(results: Sequence[Directions], folder: Path) -> list[Path]:
    return [draw(results, folder / "directions.png"), write(results, folder / "index.html")]


STUDY = Study(
    "directions",
    KEYS,
    PPOArm,
    read_results,
    tables,
    rows,
    _pictures,
    files=("results.md", "results.csv", "directions.png", "index.html"),
)
