"""The runs of `rollsight study ENV`: arms times seeds, each in a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from rollsight.runs import is_run
from rollsight.studies.runner import Report
from rollsight.training.run import RunSettings, run_training

Arm: TypeAlias = Literal["ppo", "iif", "random"]


@dataclass(frozen=True)
class Run:
    """One run of a comparison.

    name: as the tables show it.
    settings: what is trained.
    out: its run folder.
    """

    name: str
    settings: RunSettings
    out: Path

    @property
    def rounds(self) -> int:
        return self.settings.rounds or 0

    def run(self, report: Report) -> None:
        # What is there was left by a try whose process was killed: the study began in an empty folder.
        run_training(self.settings, self.out, overwrite=is_run(self.out), on_progress=report)


def runs_of(base: RunSettings, arms: Sequence[Arm], drop: float, seeds: Sequence[int], folder: Path) -> list[Run]:
    """Every arm for each seed in turn: all arms share a seed's random streams."""
    rules = {"ppo": None, "iif": f"negative:{drop}", "random": f"random:{drop}"}
    runs = []
    for seed in seeds:
        for arm in arms:
            name = f"{arm}-seed{seed}"
            settings = replace(base, seed=seed, selection=rules[arm], arm=arm).resolved()
            runs.append(Run(name, settings, folder / name))
    return runs
