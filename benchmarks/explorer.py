"""What a viewer of run folders waits for: pages of records, one line a run, whole columns of rounds.

    python benchmarks/explorer.py [--folder FOLDER]

Makes a run of 1,000 rounds of 2,048 records and 200 runs of 20 rounds of 64 records with the real writer, where the
folder (a temporary one otherwise) does not have them yet, and prints milliseconds: the median and the largest of
several calls in this process, and the first call.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rollsight import runs
from rollsight.runs import completeness, queries

REPEATS = 15
LONG, RECORDS = 1000, 2048
MANY, ROUNDS, FEW = 200, 20, 64
_ENVS = 8


def columns_of(round: int, records: int, rng: np.random.Generator) -> dict[str, Any]:
    """The records of a CartPole-like round under the names of the run schema."""
    step, env = np.divmod(np.arange(records), _ENVS)
    score = rng.standard_normal(records)
    valid = rng.random(records) > 0.01
    return {
        "round": np.full(records, round),
        "env": env,
        "step": step,
        "episode": round * _ENVS + env,
        "episode_step": step,
        "action": rng.integers(0, 2, records),
        "reward": np.ones(records),
        **{name: rng.standard_normal(records).astype(np.float32) for name in ("value", "advantage", "return")},
        "log_prob": -rng.random(records).astype(np.float32),
        "entropy": rng.random(records).astype(np.float32),
        "score_return": np.where(valid, score, 0.0).astype(np.float32),
        "kept": valid & (score > -0.5),
        "valid": valid,
        "episode_return": [None] * records,
        "obs": rng.standard_normal((records, 4)).astype(np.float32),
        "episode_start": ['{"seed": 1}' if one == 0 else None for one in step],
    }


def summary_of(round: int, columns: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The round's summary under the names of the run schema."""
    names = [column.name for column in runs.schema.ROUNDS if "*" not in column.name and column.type == "number"]
    valid = int(columns["valid"].sum())
    counts = {"records": len(columns["valid"]), "valid": valid, "timesteps": round * len(columns["valid"])}
    return {**{name: float(rng.standard_normal()) for name in names}, **counts, "target": "return", "warnings": None}


def write(path: Path, rounds: int, records: int, seed: int) -> None:
    """A run folder with the real writer."""
    rng = np.random.default_rng(seed)
    metadata = {"host": "own", "env": "CartPole-v1", "algo": "ppo", "arm": f"arm {seed % 4}", "seed": seed}
    with runs.create(path, metadata) as writer:
        for round in range(1, rounds + 1):
            columns = columns_of(round, records, rng)
            writer.write_records(round, columns)
            writer.write_round(round, summary_of(round, columns, rng))


def prepare(folder: Path) -> tuple[Path, list[Path]]:
    """The long run and the many runs, made where they are not there yet."""
    started = time.perf_counter()
    long, many = folder / "long", [folder / "many" / f"run-{number:03d}" for number in range(MANY)]
    if not runs.is_run(long):
        write(long, LONG, RECORDS, seed=0)
        print(f"made {LONG} rounds of {RECORDS} records in {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    for number, path in enumerate(many):
        if not runs.is_run(path):
            write(path, ROUNDS, FEW, seed=number)
    print(f"made {MANY} runs of {ROUNDS} rounds in {time.perf_counter() - started:.1f} s")
    return long, many


def timed(name: str, call: Callable[[int], Any], repeats: int = REPEATS) -> None:
    """Print milliseconds of the first call, then median and largest of the others."""
    times = []
    for repeat in range(repeats):
        started = time.perf_counter()
        call(repeat)
        times.append(1000 * (time.perf_counter() - started))
    rest = times[1:] or times
    print(f"| {name} | {times[0]:.0f} | {statistics.median(rest):.1f} | {max(rest):.1f} |")


def measure_queries(long: Path, many: list[Path]) -> None:
    """The table of what `rollsight.runs` answers."""
    run = runs.open(long)
    where: list[queries.Condition] = [("kept", "=", False), ("score_return", "<", -0.5), ("action", "in", [1])]
    print("| question | first, ms | median, ms | largest, ms |\n|---|---|---|---|")
    order: list[Any] = [("score_return", "ascending")]
    timed("page of another round, filtered and sorted", lambda i: queries.page(run, 1 + 61 * i, where, order, 100, 100))
    timed("another page of that round", lambda i: queries.page(run, 1, where, order, 10 * i, 100))
    timed("its search for a text", lambda i: queries.page(run, 1, search=f"seed{i}"))
    timed("summary of 200 runs", lambda i: queries.summary_table(many), 5)
    known = queries.summary_table(many)
    timed("the same, nothing changed", lambda i: queries.summary_table(many, known))
    timed("completeness of the long run", lambda i: completeness.completeness(runs.open(long)), 5)
    names = ["round", "return_mean", "kept_frac", "approx_kl"]
    timed("four columns of 1,000 rounds", lambda i: run.frame("rounds", columns=names, as_="arrow"), 3)
    timed("all columns of 1,000 rounds", lambda i: run.frame("rounds", as_="arrow"), 3)
    print(f"memory at most: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the runs are, or are made and stay")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        measure_queries(*prepare(folder or Path(temporary)))


if __name__ == "__main__":
    main()
