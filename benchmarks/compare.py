"""What `rollsight compare` costs on many runs: seconds, and the process's peak memory.

    python benchmarks/compare.py [--runs 200] [--rounds 50]

The runs are made in a temporary folder: two arms, half of the runs each, an evaluation of 20 episodes after every round
and no records, which the command does not read.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rollsight import runs


def make(path: Path, arm: str, seed: int, rounds: int) -> None:
    """One run whose returns grow with the rounds."""
    rng = np.random.default_rng(seed)
    with runs.create(path, {"env": "CartPole-v1", "arm": arm, "seed": seed}) as writer:
        for round in range(rounds + 1):
            writer.write_evaluation(round, rng.normal(round, 5.0, 20), np.full(20, 100))
            if round:
                writer.write_round(round, {"records": 2048, "return_mean": float(rng.normal(round)), "scored": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.runs):
            arm, seed = ("ppo", "iif")[number % 2], number // 2
            make(Path(folder) / f"{arm}-{seed}", arm, seed, options.rounds)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "rollsight", "compare", folder], check=True)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # KiB on Linux
    print(f"{options.runs} runs of {options.rounds} rounds: {seconds:.1f} s, {peak:.0f} MiB at most")


if __name__ == "__main__":
    main()
