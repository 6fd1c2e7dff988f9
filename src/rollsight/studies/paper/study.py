"""The study as a folder: which runs belong to it, which of them are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from rollsight.errors import RollsightError
from rollsight.studies.paper.arms import Arm
from rollsight.studies.paper.cell import Cell, Evaluations
from rollsight.training.paper import EnvSettings, paper, settings_for

Budget: TypeAlias = Literal["quick", "full"]

_QUICK_ROUNDS, _QUICK_EPISODES = 20, 20


def cells_of(
    envs: Sequence[str], arms: Sequence[Arm], seeds: Sequence[int], budget: Budget, folder: Path
) -> list[Cell]:
    """Every arm on every environment with every seed: one environment after the other, and all arms of a seed before
    the next, so that what there is of an unfinished study can be compared.

    budget: "full" has the paper's rounds and evaluations as in `paper.toml`; "quick" at most 20 rounds, and 20 episodes
    after every second one, which shows that all works and no more.
    """
    cells = []
    for env in envs:
        settings = settings_for(env)
        rounds, evaluations = _schedule(settings, budget)
        # As it is resolved: what is the paper's by default and what is given in full are the same run.
        chosen = dict.fromkeys(named(arm, settings) for arm in arms)
        cells += [Cell(env, arm, seed, rounds, evaluations, folder) for seed in seeds for arm in chosen]
    return cells


def envs_of(names: Sequence[str]) -> list[str]:
    """Environments of the study by name; where none is given, the paper's six, Highway by its fast variant.
    `RollsightError` for others."""
    unknown = [name for name in names if name not in paper()]
    if unknown:
        raise RollsightError(f"{unknown[0]} is not in the paper's study: choose from {', '.join(paper())}.")
    return list(names) or [env for env, settings in paper().items() if settings.by_default]


def named(arm: Arm, settings: EnvSettings) -> Arm:
    """The arm as a study writes it: what differs from the paper's settings spelt out, and p always."""
    whole = arm.resolved(settings)
    return Arm(
        whole.kind,
        whole.p,
        None if whole.optimizer == settings.optimizer else whole.optimizer,
        None if whole.lr == settings.lr else whole.lr,
        whole.max_grad_norm,
        whole.envs,
    )


def _schedule(settings: EnvSettings, budget: Budget) -> tuple[int, Evaluations]:
    if budget == "quick":
        return min(settings.rounds, _QUICK_ROUNDS), Evaluations(_QUICK_EPISODES, 2)
    return settings.rounds, Evaluations(settings.episodes, settings.every)
