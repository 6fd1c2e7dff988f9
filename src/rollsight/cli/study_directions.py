"""`rollsight study directions`: which way the arms go, seen from records that none of them has seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from rollsight.cli.study_runs import FLAT, StudyOptions, require, run_and_report
from rollsight.errors import RollsightError
from rollsight.studies.arms import listed, spelled
from rollsight.studies.directions.cell import Cell, Settings, cells_of
from rollsight.studies.ppo_arms import PPOArm

_ARMS = ("ppo", "iif", "random", "permuted", "matched-norm")
_SETTINGS = Settings()
_DEFAULTS = StudyOptions(seeds=5, out=Path("runs/directions"))


def study_directions(
    *,
    envs: Annotated[tuple[str, ...], arg(metavar="ENV,...")] = ("Acrobot-v1",),
    arms: Annotated[
        tuple[str, ...],
        arg(
            metavar="ARM,...",
            help=f"What to compare: the first one trains, and all have the same options after the @. {spelled(PPOArm)}",
        ),
    ] = _ARMS,
    settings: Annotated[Settings, FLAT] = _SETTINGS,
    study: Annotated[StudyOptions, FLAT] = _DEFAULTS,
) -> None:
    """Does dropping records point the update the right way, or only make it longer?

    One arm trains; in its rounds the other arms make their updates too, from the same parameters, optimiser state and
    buffer, and all are compared on fresh records of the same policy. An update that gains much on its own records and
    little on fresh ones has learnt their noise. This tells arms apart in minutes where learning curves need many seeds.

    A run that is in the folder already is not repeated.

    Args:
        envs: Environments, those of the paper with its settings, any other with its common ones.
    """
    from rollsight.studies.directions.study import STUDY

    def cells() -> Sequence[Cell]:
        require("rollsight.training.compiled")
        from rollsight.environments.make import check_environment, observations_of
        from rollsight.studies.settings import keep_settings

        chosen = [PPOArm.of(arm) for arm in listed(arms)]
        for env in (wanted := listed(envs)):
            check_environment(env)
            if observations_of(env) == "atari":
                raise RollsightError(
                    f"The compiled engine leaves Atari to Stable-Baselines3; choose another than {env}."
                )
        made = cells_of(wanted, chosen, study.all_seeds(), settings)
        keep_settings(study.out, settings, STUDY.name)
        return made

    run_and_report(STUDY, study, cells)
