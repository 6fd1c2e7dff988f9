"""One run of the study: an arm trains, the others are compared with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import arg

from rollsight.errors import Diverged, OptionError, RollsightError
from rollsight.streams import Purpose
from rollsight.studies.ppo_arms import PPOArm
from rollsight.studies.runner import Report
from rollsight.studies.store import Columns, Key

_SIDE_BY_SIDE = 8  # environments that fresh records come from
_COMPARED = 30  # rounds of a run, where nothing is said


@dataclass(frozen=True)
class Settings:
    """What all runs of a study share."""

    rounds: Annotated[int | None, arg(help_behavior_hint="(default: the paper's, else 50)")] = None
    """Rounds to train."""
    every: Annotated[int | None, arg(help_behavior_hint="(default: 30 comparisons a run)")] = None
    """Compare in every k-th round."""
    records: int = 8192
    """Fresh records of a comparison."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise OptionError(f"{{{name}}} is not possible: give at least 1", **{name: value})


@dataclass(frozen=True)
class Cell:
    """One run.

    env: name of the environment.
    arms: the arms that are compared; the first one trains.
    seed: of every random stream.
    rounds, every, records: as in `Settings`.
    """

    env: str
    arms: tuple[PPOArm, ...]
    seed: int
    rounds: int
    every: int
    records: int

    @property
    def name(self) -> str:
        return f"{self.env} {self.arms[0]} {self.seed}"

    @property
    def key(self) -> Key:
        return self.env, str(self.arms[0]), self.seed

    def done(self, columns: Columns) -> bool:
        """Whether all of its arms are there."""
        return {str(arm) for arm in self.arms} <= set(columns["arm"])

    def run(self, report: Report) -> list[dict[str, Any]]:
        """Train, and return a row for every arm in all compared rounds; of a run that diverges, those until then."""
        from rollsight.studies.directions.updates import Compared
        from rollsight.studies.trainer import trainer_of
        from rollsight.training.compiled import environments
        from rollsight.training.compiled.trainer import Plan
        from rollsight.training.paper import settings_for

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
        return compared.rows


def cells_of(envs: Sequence[str], arms: Sequence[PPOArm], seeds: Sequence[int], study: Settings) -> list[Cell]:
    """One run for each environment and seed.

    Raises:
        RollsightError: the arms differ in their options, or there are fewer rounds than one comparison takes.
    """
    from rollsight.training.paper import settings_for  # here: it loads the environments

    cells = []
    for env in envs:
        paper = settings_for(env)
        chosen = tuple(dict.fromkeys(arm.named(paper) for arm in arms))
        for arm in chosen:
            if arm.standard != chosen[0].standard:
                raise RollsightError(
                    f"{arm} has other options than {chosen[0]}, but all arms make their updates in its run; give them "
                    "the same options after the @."
                )
        rounds = paper.rounds if study.rounds is None else study.rounds
        every = max(1, rounds // _COMPARED) if study.every is None else study.every
        if every > rounds:
            raise RollsightError(f"every={every} compares nothing in {rounds} rounds of {env}; give at most {rounds}.")
        cells += [Cell(env, chosen, seed, rounds, every, study.records) for seed in seeds]
    return cells
