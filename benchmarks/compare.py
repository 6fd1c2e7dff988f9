"""What `rollsight compare` costs on many runs: seconds on the clock and of the processor, and the peak memory.

    python benchmarks/compare.py [--runs 200] [--rounds 20]

The runs are made in a temporary folder: two arms, half of the runs each, an evaluation of 20 episodes after every round
and no records, which the command does not read.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def make(folder: Path, count: int, rounds: int) -> None:
    """Runs whose returns grow with the rounds."""
    import numpy as np

    from rollsight import runs

    for number in range(count):
        arm, seed = ("ppo", "iif")[number % 2], number // 2
        rng = np.random.default_rng(number)
        with runs.create(folder / f"{arm}-{seed}", {"env": "CartPole-v1", "arm": arm, "seed": seed}) as writer:
            for round in range(rounds + 1):
                writer.write_evaluation(round, rng.normal(round, 5.0, 20), np.full(20, 100))
                if round:
                    writer.write_round(round, {"records": 2048, "return_mean": float(rng.normal(round))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make is not None:
        make(options.make, options.runs, options.rounds)
        return
    # This process stays small: a child's peak counts from the memory of the process that it was forked from.
    with tempfile.TemporaryDirectory() as folder:
        sizes = ["--runs", str(options.runs), "--rounds", str(options.rounds)]
        subprocess.run([sys.executable, __file__, "--make", folder, *sizes], check=True)
        started = time.perf_counter()
        child = subprocess.Popen([sys.executable, "-m", "rollsight", "compare", folder])
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"rollsight compare failed ({status})")
    spent, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024  # KiB on Linux
    print(
        f"{options.runs} runs of {options.rounds} rounds: {seconds:.1f} s ({spent:.1f} s of processor), {peak:.0f} MiB"
    )


if __name__ == "__main__":
    main()
