"""The study of the paper's experiments: which runs belong to it, and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from rollsight.errors import RollsightError
from rollsight.studies.paper import figures, tables
from rollsight.studies.paper.cell import Cell, Evaluations
from rollsight.studies.paper.results import KEYS, EnvResult, read_results, rows
from rollsight.studies.ppo_arms import PPOArm
from rollsight.studies.study import Study
from rollsight.training.paper import EnvSettings, paper, settings_for

Budget: TypeAlias = Literal["quick", "full"]

_QUICK_ROUNDS, _QUICK_EPISODES = 20, 20


@dataclass(frozen=True)
class Settings:
    """What all runs of a study share."""

    budget: Budget = "full"
    """full: the paper's rounds and evaluations as in `paper.toml`; quick: at most 20 rounds, and 20 episodes after
    every second one, which shows that all works and no more."""


def cells_of(envs: Sequence[str], arms: Sequence[PPOArm], seeds: Sequence[int], settings: Settings) -> list[Cell]:
    """Every arm on every environment with every seed: one environment after the other, and all arms of a seed before
    the next, so that what there is of an unfinished study can be compared."""
    cells = []
    for env in envs:
        theirs = settings_for(env)
        rounds, evaluations = _schedule(theirs, settings.budget)
        # As it is resolved: what is the paper's by default and what is given in full are the same run.
        chosen = dict.fromkeys(arm.named(theirs) for arm in arms)
        cells += [Cell(env, arm, seed, rounds, evaluations) for seed in seeds for arm in chosen]
    return cells


def envs_of(names: Sequence[str]) -> list[str]:
    """Environments of the study by name; where none is given, the paper's six, Highway by its fast variant.
    `RollsightError` for others."""
    unknown = [name for name in names if name not in paper()]
    if unknown:
        raise RollsightError(f"{unknown[0]} is not in the paper's study: choose from {', '.join(paper())}.")
    return list(names) or [env for env, settings in paper().items() if settings.by_default]


def _schedule(settings: EnvSettings, budget: Budget) -> tuple[int, Evaluations]:
    if budget == "quick":
        return min(settings.rounds, _QUICK_ROUNDS), Evaluations(_QUICK_EPISODES, 2)
    return settings.rounds, Evaluations(settings.episodes, settings.every)


def _pictures(results: Sequence[EnvResult], folder: Path) -> list[Path]:
    drawn = [figures.draw_curves(result, folder / f"{result.env}.png") for result in results]
    compared = [figures.draw_comparisons(result, folder / f"{result.env}-arms.png") for result in results]
    drawn += filter(None, [*compared, figures.draw_sweeps(results, folder / "sweeps.png")])
    return [*drawn, figures.write(results, folder / "index.html")]


STUDY = Study(
    "paper",
    KEYS,
    PPOArm,
    read_results,
    tables.markdown,
    rows,
    _pictures,
    files=("results.md", "results.csv", "index.html", "sweeps.png"),
)
