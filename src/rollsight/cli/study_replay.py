"""`rollsight study replay`: transitions drawn by influence, by TD error and at random, and corrupt ones among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from rollsight.cli.study_runs import FLAT, StudyOptions, require, run_and_report
from rollsight.errors import RollsightError
from rollsight.studies.arms import listed, spelled
from rollsight.studies.replay.arms import ReplayArm
from rollsight.studies.replay.cell import Cell, Settings

_ARMS = ("uniform", "per", "influence", "random")
_SETTINGS = Settings()
_DEFAULTS = StudyOptions(seeds=5, out=Path("runs/replay"))


def study_replay(
    *,
    envs: Annotated[tuple[str, ...], arg(metavar="ENV,...")] = ("CartPole-v1",),
    arms: Annotated[tuple[str, ...], arg(metavar="ARM,...", help=f"What to compare. {spelled(ReplayArm)}")] = _ARMS,
    settings: Annotated[Settings, FLAT] = _SETTINGS,
    study: Annotated[StudyOptions, FLAT] = _DEFAULTS,
) -> None:
    """Does DQN or SAC learn better from transitions that influence draws, and does influence find corrupt ones?

    Transitions are weighed anew in each round, by the rank that the arm gives them; all arms but the
    host's own have the same weights in another order. The rewards of some episodes are flipped in
    training, not in the held-out episodes that the critic is held against.

    A run that is in the folder already is not repeated.

    Args:
        envs: CartPole-v1 and LunarLander-v3 (DQN), Pendulum-v1 (SAC).
    """
    from rollsight.studies.replay.study import STUDY

    def cells() -> Sequence[Cell]:
        require("rollsight.adapters.sb3_off_policy")
        from rollsight.studies.replay.models import SETTINGS
        from rollsight.studies.settings import keep_settings

        for env in (wanted := listed(envs)):
            if env not in SETTINGS:
                raise RollsightError(f"{env} has no settings in this study: choose from {', '.join(SETTINGS)}")
        chosen = list(dict.fromkeys(ReplayArm.of(arm) for arm in listed(arms)))
        keep_settings(study.out, settings, STUDY.name)
        return [Cell(env, arm, seed, settings) for env in wanted for seed in study.all_seeds(5) for arm in chosen]

    run_and_report(STUDY, study, cells)
