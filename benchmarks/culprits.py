"""What `rollsight culprits` waits for: 50 rounds of 2,048 records scored for one and for sixteen behaviours.

    python benchmarks/culprits.py [--folder FOLDER] [--rounds N]

Trains CartPole with two hidden layers of 64 units and snapshots of all rounds, where the folder (a temporary one
otherwise) does not have the run yet, and prints seconds of scoring every record of every round, one thread. A behaviour
is 500 records.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import torch

from rollsight import runs
from rollsight.analysis import culprits
from rollsight.training.run import RunSettings, run_training

PAIRS = 500


def main() -> None:
    warnings.simplefilter("ignore")
    options = argparse.ArgumentParser()
    options.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "culprits-benchmark")
    options.add_argument("--rounds", type=int, default=50)
    given = options.parse_args()
    path = given.folder / f"cartpole-{given.rounds}"
    torch.set_num_threads(1)
    if not runs.is_run(path):
        settings = RunSettings(
            "CartPole-v1", engine="sb3", rounds=given.rounds, envs=8, n_steps=256, net="64,64", lr=1e-3,
            eval_episodes=0, epochs=1, snapshots="all",
        )  # fmt: skip
        run_training(settings, path)
    run = runs.open(path)
    records = [f"round = {1 + place} and action = {place % 2}" for place in range(16)]
    behaviours = [culprits.of_query(run, f"select * from records where {where} limit {PAIRS}") for where in records]
    for number in (1, 16):
        shutil.rmtree(runs.results_folder(path, "culprits", ""), ignore_errors=True)
        start, used = time.perf_counter(), time.process_time()
        culprits.score_rounds(run, behaviours[:number])
        seconds, used = time.perf_counter() - start, time.process_time() - used
        print(f"{given.rounds} rounds, {number} behaviour(s): {seconds:.1f} s, {used:.1f} s of CPU", flush=True)


if __name__ == "__main__":
    main()
