"""One run of the study: an arm with a seed, and its run folder where completions are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rollsight.studies.cells import LanguageCell, silence_transformers
from rollsight.studies.grpo.arms import GRPOArm
from rollsight.studies.grpo.settings import Settings
from rollsight.studies.runner import Report


@dataclass(frozen=True)
class Cell(LanguageCell[GRPOArm, Settings]):
    """One run."""

    def run(self, report: Report) -> list[dict[str, Any]]:
        """Train, and return the curve. Seconds are of processor time: runs share their machine."""
        from rollsight.studies.grpo.training import train

        silence_transformers()
        self.run_folder.parent.mkdir(parents=True, exist_ok=True)
        return train(self.arm, self.settings, self.seed, self.run_folder, report)
