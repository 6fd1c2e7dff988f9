"""How long the compiled engine takes to collect a round of 2048 rows, by stepper and number of environments.

    python benchmarks/collection.py [--envs ENV...] [--rounds 5]

CPU milliseconds, median after one round to warm up, and the seconds that making, compiling and warming up take. An
untrained policy of the paper's size; steppers take turns.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import argparse
import statistics
import time
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO

from rollsight.environments.make import make_environments, observations_of
from rollsight.training.compiled.collect import Collector
from rollsight.training.compiled.conversion import parameters_of
from rollsight.training.compiled.environments import POOLED, Stepper, make
from rollsight.training.compiled.networks import network_of
from rollsight.training.networks import MiniGridFeatures

RECORDS = 2048
STEPPERS: tuple[Stepper, ...] = ("gymnasium", "envpool")


def policy_of(env: str) -> Any:
    keywords: dict[str, Any] = {}
    if observations_of(env) == "minigrid":
        keywords = {"features_extractor_class": MiniGridFeatures, "normalize_images": False, "net_arch": []}
    kind = "CnnPolicy" if keywords else "MlpPolicy"
    return PPO(kind, make_environments(env, 1), policy_kwargs=keywords, device="cpu", seed=0).policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=list(POOLED), metavar="ENV")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    names = [f"{count} {stepper}" for count in (1, 8) for stepper in STEPPERS]
    print("| environment | " + " | ".join(names) + " | first |\n" + "|---" * (len(names) + 2) + "|")
    for env in given.envs:
        policy, rounds = policy_of(env), 1 if env.startswith("highway-") else given.rounds
        collects, first = [], []
        for count in (1, 8):
            for stepper in STEPPERS:
                if env.startswith("highway-") and stepper == "gymnasium" and count > 1:
                    continue  # minutes, and no other figure than with one
                started = time.process_time()
                collector = Collector(make(env, count, (1,), stepper), network_of(policy), 0.99, 0.95)
                collects.append(partial(collector.collect, parameters_of(policy), RECORDS // count))
                if stepper == "envpool" or not env.startswith("highway-"):
                    collects[-1](np.random.default_rng(0), 0)
                first.append(time.process_time() - started)
        taken: list[list[float]] = [[] for _ in collects]
        for k in range(rounds):
            for samples, collect in zip(taken, collects, strict=True):
                started = time.process_time()
                collect(np.random.default_rng(k), k + 1)
                samples.append(1e3 * (time.process_time() - started))
        cells = [f"{statistics.median(samples):.0f}" for samples in taken]
        print(f"| {env} | " + " | ".join([*cells, f"{max(first):.1f} s"]) + " |", flush=True)


if __name__ == "__main__":
    main()
