"""What a snapshot costs: seconds to take, save, load and rebuild it, and its size.

    python benchmarks/snapshots.py

Run it in two checkouts to compare versions (PYTHONPATH=src). Best of 7, one thread.
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from rollsight import Snapshot
from rollsight.adapters.sb3 import InfluenceCallback

REPEATS = 7


class Images(gym.Env[Any, Any]):
    """84 x 84 x 4 images at random, as Atari's preprocessing gives them."""

    observation_space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    action_space = spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.integers(0, 256, (84, 84, 4), np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.np_random.integers(0, 256, (84, 84, 4), np.uint8), 1.0, False, False, {}


def best(call: Callable[[], Any]) -> float:
    """Milliseconds of the fastest of several calls."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cases = {
        "CartPole, MLP, 2,048 records": ("MlpPolicy", lambda: gym.make("CartPole-v1"), 2048),
        "images, CNN, 256 records": ("CnnPolicy", Images, 256),
    }
    for name, (policy, env, steps) in cases.items():
        model = PPO(policy, DummyVecEnv([env]), n_steps=steps, batch_size=64, n_epochs=1, seed=0, device="cpu")
        influence = InfluenceCallback(snapshots="all")
        model.learn(steps, callback=influence)
        snapshot = influence.snapshot
        assert snapshot is not None
        held, optimizer = snapshot.rebuild()
        file = io.BytesIO()
        snapshot.save(file)

        def load(content: bytes = file.getvalue()) -> Snapshot:
            return Snapshot.load(io.BytesIO(content))

        given = (snapshot.round, held, optimizer, snapshot.records, snapshot.rule)
        times = {
            "take": best(lambda given=given: Snapshot.take(*given)),
            "save": best(lambda snapshot=snapshot: snapshot.save(io.BytesIO())),
            "load": best(load),
            "rebuild": best(snapshot.rebuild),
        }
        shown = ", ".join(f"{part} {value:.1f} ms" for part, value in times.items())
        print(f"{name}: {shown}, {len(file.getvalue()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
