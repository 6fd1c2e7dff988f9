"""What a round of `rollsight rlhf` spends on scoring, and what leaving out half of the completions saves.

    python benchmarks/rlhf_rounds.py [--model smollm2] [--target sequence] [--rounds 3]

Rounds of PPO with 4 epochs, as `rollsight rlhf` makes them: plain, scored with nothing left out, the same from the
forward that gave the log-probabilities, and with every other completion left out. One thread, processor seconds of each
phase, medians over the rounds; the runs take turns. Exit code 1 where scoring takes more than 15 % of a scored round,
10 % with a shared forward, or the optimisation of half the completions more than 60 % of a whole round's.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from rollsight.training.language import run
from rollsight.training.language.ppo import LanguagePPO
from rollsight.training.language.settings import Options

PHASES = ("generate", "reward", "log_probs", "score", "train")
SCORING, SHARED, HALF = 0.15, 0.10, 0.60


def half(records: Any, rows: Any, when: tuple[int, ...]) -> tuple[Any, Any]:
    """A selection that leaves out every other completion, at no cost."""
    return torch.zeros(len(rows)), np.arange(len(rows)) % 2 == 0


def trainers(model: str, target: Any, prompts_per_round: int) -> dict[str, LanguagePPO]:
    options = Options(prompts_per_round=prompts_per_round, target="none")
    plain = run.RunSettings(model=model, options=options, max_prompt_tokens=16, eval_prompts=0, precision="float32")
    scored = replace(plain, options=replace(options, target=target, drop=0.0))
    shared = replace(plain, options=replace(scored.options, share_forward=True))
    settings = {"plain": plain, "scored": scored, "shared": shared, "half": plain}
    made = {name: run.prepare(one)[0] for name, one in settings.items()}
    made["half"]._select = half  # type: ignore[method-assign]
    for trainer in made.values():
        trainer.clock = time.process_time
    return made


def main() -> int:
    """Measure, print, and say what was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--target", default="sequence", choices=("sequence", "return", "reward"))
    parser.add_argument("--prompts-per-round", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 120)
    made = trainers(arguments.model, arguments.target, arguments.prompts_per_round)
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in made}
    for _ in range(arguments.rounds):
        for name, trainer in made.items():
            trainer.train_round()
            spent[name].append({phase: trainer.times.get(phase, 0.0) for phase in PHASES})
    table = Table(*("round", *PHASES, "whole"), title=f"processor seconds, load {os.getloadavg()[0]:.1f}")
    medians = {name: {p: statistics.median(r[p] for r in rounds) for p in PHASES} for name, rounds in spent.items()}
    for name, found in medians.items():
        table.add_row(name, *(f"{found[p]:.2f}" for p in PHASES), f"{sum(found.values()):.2f}")
    console.print(table)
    share, shared = (statistics.median(r["score"] / sum(r.values()) for r in spent[n]) for n in ("scored", "shared"))
    saved = statistics.median(h["train"] / w["train"] for h, w in zip(spent["half"], spent["plain"], strict=True))
    missed = False
    for text, value, limit in (
        ("scoring, of a scored round", share, SCORING),
        ("the same, from the log-probabilities' forward", shared, SHARED),
        ("optimising half the completions, of a whole round's", saved, HALF),
    ):
        missed |= value > limit
        mark = "[red]missed[/]" if value > limit else "[green]met   [/]"
        console.print(f"{mark} {text}: {100 * value:.1f} % (at most {100 * limit:.0f})")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
