"""One run of the study: an arm with a seed, whose learning curve is one CSV file, beside its run folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.studies.cells import StudyCell, silence_transformers
from rollsight.studies.grpo.arms import Arm
from rollsight.studies.grpo.training import PHASES, Settings, train
from rollsight.studies.runner import Report

_SETTINGS = "settings.json"  # in the study's folder


@dataclass(frozen=True)
class Cell(StudyCell[Arm, Settings]):
    """One run."""

    phases = PHASES

    def run(self, report: Report) -> None:
        """Train, and write the curve. Seconds are of processor time: runs share their machine."""
        silence_transformers()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.keep(train(self.arm, self.study, self.seed, self.run_folder, report))


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
