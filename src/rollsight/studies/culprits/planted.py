"""Planted causes: a reward that pays one action in some environments or episodes, and the tags of its records."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.arrays import Bools
from rollsight.studies.wrappers import Paying

Cause = Literal["one environment", "a tenth of the episodes"]
ENVS, STEPS, ROUNDS = 8, 256, 10
FAULTY = 3  # of the environments
_SHARE = 0.1  # of the episodes
# The action that is paid, and the reward that it is paid with: all are rewards that the environment gives by itself.
PAID = {"LunarLander-v3": (2, 3.0), "Acrobot-v1": (0, 0.0)}


@dataclass(frozen=True)
class Cell:
    """One run with a planted cause.

    env: the environment's name, one of `PAID`.
    cause: where the reward pays the action.
    seed: of everything.
    """

    env: str
    cause: Cause
    seed: int

    def train(self, run: Path) -> Bools:
        """Train, and return the tags (rounds, steps, environments) of its records."""
        action, reward = PAID[self.env]

        def make(place: int) -> gym.Env[Any, Any]:
            share = _SHARE if self.cause == "a tenth of the episodes" else float(place == FAULTY)
            return Monitor(Paying(gym.make(self.env), action, reward, share, 100 * self.seed + place))

        vec = DummyVecEnv([partial(make, place) for place in range(ENVS)])
        model = PPO(
            "MlpPolicy",
            vec,
            n_steps=STEPS,
            batch_size=256,
            n_epochs=4,
            learning_rate=1e-3,
            seed=self.seed,
            device="cpu",
        )
        watch = InfluenceCallback(run=run, overwrite=True, snapshots="all")
        model.learn(ENVS * STEPS * ROUNDS, callback=watch)
        tags = np.array([env.get_wrapper_attr("tags") for env in vec.envs], np.bool_)
        return tags.T.reshape(ROUNDS, STEPS, ENVS)
