"""100 retrains of one round: 1024 records, 4 epochs, minibatches of 64, a 64x64 network; at most 10 s on one core.

python benchmarks/retrains.py [--json FILE]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from stable_baselines3 import PPO

from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.analysis.fidelity.stacked import retrain

MODELS, LIMIT = 100, 10.0


def main() -> None:
    torch.set_num_threads(1)
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=1024, batch_size=64, n_epochs=4, seed=0, device="cpu")
    influence = InfluenceCallback(snapshots="every:1")
    model.learn(1024, callback=influence)
    snapshot = influence.snapshot
    assert snapshot is not None
    torch.manual_seed(0)
    weights = (torch.rand(MODELS, 1024).argsort(1) < 512).float()

    wall, cpu = time.perf_counter(), time.process_time()
    result = retrain(snapshot, weights)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    started = time.process_time()
    alone = snapshot.replay("mask", weights[0]).parameters
    one = time.process_time() - started
    difference = max(float((p[0] - alone[name]).abs().max()) for name, p in result.parameters.items())
    print(f"{MODELS} stacked retrains: {cpu:.2f} s of one core ({wall:.2f} s by the clock), limit {LIMIT:.0f} s")
    print(f"one after another: {MODELS * one:.1f} s, from one of {one:.3f} s; largest difference {difference:.1e}")
    if "--json" in sys.argv:
        figures = {
            "models": MODELS,
            "cpu_s": cpu,
            "wall_s": wall,
            "sequential_s": MODELS * one,
            "difference": difference,
        }
        Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
