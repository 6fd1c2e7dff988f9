"""`rollsight study paper`: the paper's experiments, their controls, and what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from rollsight.cli.study_runs import FLAT, StudyOptions, require, run_and_report
from rollsight.studies.arms import listed, spelled
from rollsight.studies.ppo_arms import PPOArm

if TYPE_CHECKING:
    from rollsight.studies.paper.cell import Cell

_SEEDS = {"quick": 3, "full": 20}


@dataclass(frozen=True, kw_only=True)
class PaperOptions(StudyOptions):
    """Those of all studies."""

    seeds: Annotated[int | None, arg(help_behavior_hint="(default: 20, quick: 3)")] = None
    """Number of seeds; all arms share them."""


_DEFAULTS = PaperOptions(out=Path("runs/paper"))


def study_paper(
    *,
    envs: Annotated[
        tuple[str, ...], arg(metavar="ENV,...", help_behavior_hint="(default: all six, highway as highway-fast-v0)")
    ] = (),
    arms: Annotated[tuple[str, ...], arg(metavar="ARM,...", help=f"What to run. {spelled(PPOArm)}")] = (
        "ppo",
        "iif",
        "random",
    ),
    budget: Literal["quick", "full"] = "full",
    study: Annotated[PaperOptions, FLAT] = _DEFAULTS,
) -> None:
    """Run the paper's experiments with the compiled engine, and write tables, figures and a page.

    A run that is in the folder already is not repeated, so an interrupted study goes on where it was, and arms, seeds
    and environments can be added later. What an arm does not say is the paper's.

    Args:
        envs: Environments of the paper.
        budget: full has the paper's rounds; quick at most 20 of them and few episodes, to see that all works.
    """
    from rollsight.studies.paper.study import STUDY, Settings, cells_of, envs_of
    from rollsight.studies.settings import keep_settings

    def cells() -> Sequence[Cell]:
        require("rollsight.training.compiled")
        settings = Settings(budget)
        chosen = [PPOArm.of(arm) for arm in listed(arms)]
        wanted = cells_of(envs_of(listed(envs)), chosen, study.all_seeds(_SEEDS[budget]), settings)
        keep_settings(study.out, settings, STUDY.name)
        return wanted

    run_and_report(STUDY, study, cells)
