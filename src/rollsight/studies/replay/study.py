"""The study of replay by weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rollsight.studies.replay.arms import ReplayArm
from rollsight.studies.replay.cell import KEYS
from rollsight.studies.replay.results import Replays, draw, read_results, rows, tables, write
from rollsight.studies.study import Study


def _pictures(results: Sequence[Replays], folder: Path) -> list[Path]:
    return [draw(results, folder / "replay.png"), write(results, folder / "index.html")]


STUDY = Study(
    "replay",
    KEYS,
    ReplayArm,
    read_results,
    tables,
    rows,
    _pictures,
    files=("results.md", "results.csv", "replay.png", "index.html"),
)
