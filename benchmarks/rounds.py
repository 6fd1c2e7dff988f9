"""How long a round takes in the compiled engine, with IIF inside, against Stable-Baselines3's plain PPO and SBX's.

    python benchmarks/rounds.py [--envs ENV...] [--rounds 10] [--clock wall|cpu] [--json FILE]

2048 records a round, minibatches of 64, 10 epochs, 64 x 64, Adam, one thread each; with 1 and with 8 environments. All
engines take turns, round by round, so that a neighbour's load falls on all of them alike; figures are medians after one
round to warm up. The compiled engine's round has collection, scores, selection, update and trust line in it; nothing is
evaluated or written. Where an environment names targets, the exit code is 1 if one is missed. On a busy machine, judge
by `--clock cpu`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger

from rollsight.environments.make import make_environments
from rollsight.selection import DropNegative
from rollsight.training.compiled import environments
from rollsight.training.compiled.arms import Filtered
from rollsight.training.compiled.trainer import CompiledTrainer, Plan, environment_key

RECORDS, DROP = 2048, 0.125
ENVS = ("LunarLander-v3", "CartPole-v1", "FrozenLake-v1")
COMPILED = "compiled IIF"
PHASES = ("collect", "score", "train", "trust")

# name -> (engine, other engine, at least this many times as fast), judged on LunarLander.
TARGETS = [
    (f"{COMPILED}, 8 envs", "SB3 PPO, 1 env", 12.0),
    (f"{COMPILED}, 8 envs", "SB3 PPO, 8 envs", 7.0),
    (f"{COMPILED}, 8 envs", "SBX PPO, 8 envs", 4.0),
]
JUDGED, SECONDS, FIRST_SECONDS = "LunarLander-v3", 0.12, 6.0

Row = dict[str, Any]
Clock = Callable[[], float]


def model_of(kind: Any, env: str, count: int) -> Any:
    """A model with the defaults that both libraries share."""
    keywords = {"n_steps": RECORDS // count, "batch_size": 64, "n_epochs": 10, "device": "cpu", "seed": 0}
    model = kind("MlpPolicy", make_environments(env, count), **keywords)
    model.set_logger(Logger(None, []))
    return model


def engines_of(env: str) -> dict[str, Callable[[], Row]]:
    """A function for each engine that trains one round, and says how long its phases took where it knows."""
    engines: dict[str, Callable[[], Row]] = {}
    for count in (8, 1):
        name = f"{count} env{'s' if count > 1 else ''}"
        stepped = environments.make(env, count, environment_key(0))
        trainer = CompiledTrainer(model_of(PPO, env, count), stepped, Plan(Filtered(DropNegative(DROP, min_keep=64))))
        engines[f"{COMPILED}, {name}"] = partial(last, trainer)
        engines[f"SB3 PPO, {name}"] = partial(learn, model_of(PPO, env, count))
        if (sbx := optional_sbx()) is not None:
            engines[f"SBX PPO, {name}"] = partial(learn, model_of(sbx, env, count))
    return engines


def optional_sbx() -> Any:
    """SBX's PPO where it is installed."""
    try:
        from sbx import PPO as SbxPPO
    except ImportError:
        return None
    return SbxPPO


def last(trainer: CompiledTrainer) -> Row:
    """One round; its summary."""
    summaries: list[Any] = []
    trainer.train(1, summaries.append)
    return dict(summaries[0])


def learn(model: Any) -> Row:
    """One round of a host library."""
    model.learn(RECORDS, reset_num_timesteps=False)
    return {}


def measure(env: str, rounds: int, clock: Clock) -> list[Row]:
    """A row per engine: seconds of the first round and of the median one, and its phases by the wall clock."""
    samples: dict[str, list[Row]] = {}
    engines = engines_of(env)
    for _ in range(rounds + 1):
        for name, train in engines.items():
            started = clock()
            summary = train()
            samples.setdefault(name, []).append({**summary, "seconds": clock() - started})
    rows = []
    for name, taken in samples.items():
        row: Row = {"env": env, "engine": name, "first": taken[0]["seconds"]}
        row["seconds"] = statistics.median(sample["seconds"] for sample in taken[1:])
        for phase in PHASES:
            if f"time_{phase}" in taken[1]:
                row[phase] = statistics.median(sample[f"time_{phase}"] for sample in taken[1:])
        rows.append(row)
    return rows


def verdicts(env: str, rows: list[Row]) -> list[tuple[str, bool]]:
    """What was asked of the environment, and whether it holds."""
    by_name = {row["engine"]: row for row in rows}
    said = []
    for name, other, factor in TARGETS:
        if other in by_name:
            ratio = by_name[other]["seconds"] / by_name[name]["seconds"]
            said.append((f"{env}: {name} is {ratio:.1f}x as fast as {other} (asked: {factor:g}x)", ratio >= factor))
    if env == JUDGED:
        row = by_name[f"{COMPILED}, 8 envs"]
        said.append((f"{env}: a round of {row['seconds']:.3f} s (asked: {SECONDS} s)", row["seconds"] <= SECONDS))
        said.append((f"{env}: a first round of {row['first']:.1f} s (asked: 6 s)", row["first"] <= FIRST_SECONDS))
    return said if env == JUDGED else [(text.replace(" (asked", " (on LunarLander asked"), True) for text, _ in said]


def table_of(env: str, rows: list[Row], clock: str) -> Table:
    table = Table(title=f"{env}: seconds a round ({clock} clock; phases: wall clock)")
    for name in ("engine", "first", "seconds", *PHASES):
        table.add_column(name, justify="left" if name == "engine" else "right")
    for row in rows:
        numbers = [f"{row[name]:.3f}" if name in row else "" for name in ("first", "seconds", *PHASES)]
        table.add_row(row["engine"], *numbers)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=list(ENVS), metavar="ENV")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    clock: Clock = time.process_time if given.clock == "cpu" else time.perf_counter
    console, everything, missed = Console(width=120), list[Row](), False
    if optional_sbx() is None:
        console.print("SBX is not installed (pip install sbx-rl): not compared")
    for env in given.envs:
        rows = measure(env, given.rounds, clock)
        everything += rows
        console.print(table_of(env, rows, given.clock))
        for text, held in verdicts(env, rows):
            missed |= not held
            console.print(("ok      " if held else "missed  ") + text, highlight=False)
    if given.json is not None:
        given.json.write_text(json.dumps({"clock": given.clock, "rows": everything}, indent=2) + "\n", "utf-8")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
