"""One run of the study: an arm with a seed, whose learning curve is one CSV file, next to its run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rollsight.errors import RollsightError
from rollsight.studies.cells import StudyCell, silence_transformers, stored_settings
from rollsight.studies.grpo.arms import Arm
from rollsight.studies.grpo.training import PHASES, Settings, train
from rollsight.studies.runner import Report


@dataclass(frozen=True)
class Cell(StudyCell[Arm, Settings]):
    """One run."""

    phases = PHASES

    def run(self, report: Report) -> None:
        """Train, and write the curve. Seconds are of processor time: runs share their machine."""
        silence_transformers()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.keep(train(self.arm, self.study, self.seed, self.run_folder, report))


def settings_of(folder: Path) -> Settings:
    """The study's.

    Raises:
        RollsightError: the folder holds none, or those of another study.
    """
    try:
        return Settings(**stored_settings(folder, "grpo"))
    except TypeError as error:
        raise RollsightError(f"{folder} holds another study than `rollsight study grpo`: give its folder") from error
