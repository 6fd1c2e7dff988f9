"""One run of the study: an arm with a seed, whose learning curve is one CSV file, beside its run folder."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.studies.curves import read_curve
from rollsight.studies.grpo.arms import Arm
from rollsight.studies.grpo.training import PHASES, Settings, train
from rollsight.studies.runner import Report

_SETTINGS = "settings.json"  # in the study's folder


@dataclass(frozen=True)
class Cell:
    """One run. study: settings that all share; folder: of the study."""

    arm: Arm
    seed: int
    study: Settings
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.arm} {self.seed}"

    @property
    def rounds(self) -> int:
        return self.study.rounds

    @property
    def path(self) -> Path:
        """Its curve."""
        return self.folder / str(self.arm) / f"{self.seed}.csv"

    @property
    def done(self) -> bool:
        """Whether its curve is there."""
        return self.path.exists() and read_curve(self.path, PHASES)["round"][-1] >= self.rounds

    def run(self, report: Report) -> None:
        """Train, and write the curve. Seconds are of processor time: runs share their machine."""
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = train(self.arm, self.study, self.seed, self.path.with_suffix(""), report)
        with runs.whole_file(self.path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[-1]), lineterminator="\n")
            writer.writeheader()
            # Five significant digits: the curves of a study are kept with its tables.
            writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def keep_settings(folder: Path, settings: Settings) -> None:
    """Write them where the study begins.

    Raises:
        RollsightError: the folder is a study with others.
    """
    path = folder / _SETTINGS
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with runs.whole_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(settings), indent=2) + "\n", "utf-8")
        return
    stored, mine = asdict(settings_of(folder)), asdict(settings)
    for name, value in mine.items():
        if stored[name] != value:
            raise RollsightError(
                f"{folder} was started with {name} {stored[name]}, not {value}: give the same settings, or another "
                "--out"
            )


def settings_of(folder: Path) -> Settings:
    """The study's.

    Raises:
        RollsightError: the folder holds none.
    """
    path = folder / _SETTINGS
    try:
        return Settings(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RollsightError(
            f"{folder} holds no study with its {_SETTINGS}: run `rollsight study grpo --out {folder}` first"
        ) from error
