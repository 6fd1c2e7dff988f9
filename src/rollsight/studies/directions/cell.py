"""One run of the study: an arm trains, the others are compared with it; what they did is one CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rollsight.errors import Diverged, RollsightError
from rollsight.streams import Purpose
from rollsight.studies.curves import as_text, write_curve
from rollsight.studies.paper.arms import Arm
from rollsight.studies.paper.study import named
from rollsight.studies.runner import Report
from rollsight.training.paper import settings_for

_SIDE_BY_SIDE = 8  # environments that fresh records come from
_COMPARED = 30  # rounds of a run, where nothing is said


@dataclass(frozen=True)
class Settings:
    """What all runs of a study share.

    rounds: of training; None for the paper's.
    every: compare in every k-th round; None for about 30 comparisons.
    records: fresh records of each comparison; more make the fresh gradient less noisy.
    """

    rounds: int | None = None
    every: int | None = None
    records: int = 8192


@dataclass(frozen=True)
class Cell:
    """One run.

    env: name of the environment.
    arms: the arms that are compared; the first one trains.
    seed: of every random stream.
    rounds, every, records: as in `Settings`.
    folder: of the study.
    """

    env: str
    arms: tuple[Arm, ...]
    seed: int
    rounds: int
    every: int
    records: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.env} {self.arms[0]} {self.seed}"

    @property
    def path(self) -> Path:
        """Its file."""
        return self.folder / self.env / self.arms[0].folder / f"{self.seed}.csv"

    @property
    def done(self) -> bool:
        """Whether its file is there, and has all of its arms."""
        return self.path.exists() and {str(arm) for arm in self.arms} <= {row["arm"] for row in read_rows(self.path)}

    def run(self, report: Report) -> str:
        """Train, and return the rows of all compared rounds as the text of a CSV file; of a run that diverges, those
        until then."""
        from rollsight.studies.directions.moves import Compared
        from rollsight.studies.paper.training import trainer_of
        from rollsight.training.compiled import environments
        from rollsight.training.compiled.trainer import Plan

        made = {str(arm): arm.resolved(settings_for(self.env)).training(self.seed) for arm in self.arms}
        fresh = environments.make(self.env, _SIDE_BY_SIDE, (self.seed, 0, Purpose.FRESH_ENVIRONMENTS))
        compared = Compared(made, fresh, self.seed, self.records, self.every)

        def follow(summary: Mapping[str, Any]) -> None:
            report(summary["round"], summary)

        with closing(fresh), trainer_of(self.env, self.arms[0], self.seed, self.rounds, Plan(compared)) as trainer:
            try:
                trainer.train(self.rounds, follow)
            except Diverged:
                if not compared.rows:
                    raise
        return as_text(compared.rows)

    def write(self, rows: str) -> None:
        """Keep what was found; it appears whole or not at all."""
        write_curve(self.path, rows)


def cells_of(
    envs: Sequence[str], arms: Sequence[Arm], seeds: Sequence[int], study: Settings, folder: Path
) -> list[Cell]:
    """One run for each environment and seed.

    Raises:
        RollsightError: the arms differ in their options, or there are fewer rounds than one comparison takes.
    """
    cells = []
    for env in envs:
        paper = settings_for(env)
        chosen = tuple(dict.fromkeys(named(arm, paper) for arm in arms))
        for arm in chosen:
            if replace(arm, kind="ppo", p=None) != replace(chosen[0], kind="ppo", p=None):
                raise RollsightError(
                    f"{arm} has other options than {chosen[0]}, but all arms make their updates in its run; give them "
                    "the same options after the @."
                )
        rounds = paper.rounds if study.rounds is None else study.rounds
        every = max(1, rounds // _COMPARED) if study.every is None else study.every
        if every > rounds:
            raise RollsightError(f"every={every} compares nothing in {rounds} rounds of {env}; give at most {rounds}.")
        cells += [Cell(env, chosen, seed, rounds, every, study.records, folder) for seed in seeds]
    return cells


def read_rows(path: Path) -> list[dict[str, str]]:
    """What a run's file holds."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
