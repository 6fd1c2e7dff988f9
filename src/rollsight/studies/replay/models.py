"""The models of the study, with the settings of RL Baselines3 Zoo (on CartPole a smaller network, Stable-Baselines3's
own), and environments that flip rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from rollsight.adapters.sb3_off_policy import WeightedReplayBuffer
from rollsight.streams import Purpose, stream


@dataclass(frozen=True)
class Setting:
    """How an environment is trained in.

    algo: the algorithm.
    steps: of the environment.
    every: updates between two rounds.
    keywords: of the model.
    """

    algo: Literal["DQN", "SAC"]
    steps: int
    every: int
    keywords: Mapping[str, Any]


SETTINGS: Mapping[str, Setting] = {
    "CartPole-v1": Setting(
        "DQN",
        50_000,
        1_280,
        {
            "learning_rate": 2.3e-3,
            "batch_size": 64,
            "buffer_size": 100_000,
            "learning_starts": 1_000,
            "target_update_interval": 10,
            "train_freq": 256,
            "gradient_steps": 128,
            "gamma": 0.99,
            "exploration_fraction": 0.16,
            "exploration_final_eps": 0.04,
        },
    ),
    "LunarLander-v3": Setting(
        "DQN",
        100_000,
        5_000,
        {
            "learning_rate": 6.3e-4,
            "batch_size": 128,
            "buffer_size": 50_000,
            "learning_starts": 100,
            "target_update_interval": 250,
            "train_freq": 4,
            "gradient_steps": -1,
            "gamma": 0.99,
            "exploration_fraction": 0.12,
            "exploration_final_eps": 0.1,
            "policy_kwargs": {"net_arch": [256, 256]},
        },
    ),
    "Pendulum-v1": Setting("SAC", 10_000, 500, {"learning_rate": 1e-3, "learning_starts": 100, "buffer_size": 100_000}),
}


class Flipping(gym.Wrapper[Any, Any, Any, Any]):
    """Flips the sign of all rewards in a share of the episodes. tags: of each step, whether it did; nothing else sees
    them."""

    def __init__(self, env: gym.Env[Any, Any], share: float, seed: int) -> None:
        super().__init__(env)
        self._share, self._rng = share, stream(seed, Purpose.PAYING_EPISODES)
        self._flips = False
        self.tags: list[bool] = []

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        self._flips = bool(self._rng.random() < self._share)
        return self.env.reset(**how)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.tags.append(self._flips)
        return obs, -float(reward) if self._flips else reward, terminated, truncated, info


def clean(env: str) -> gym.Env[Any, Any]:
    """The environment as it is, for held-out episodes."""
    return Monitor(gym.make(env))


def make_model(env: str, corrupt: float, seed: int, weighs: bool) -> tuple[OffPolicyAlgorithm, Flipping]:
    """A model, and its environment, which flips the rewards of a share of its episodes. weighs: whether its buffer can
    draw by weight."""
    setting = SETTINGS[env]
    flipping = Flipping(gym.make(env), corrupt, seed)
    buffer = {"replay_buffer_class": WeightedReplayBuffer} if weighs else {}
    algorithm: Any = {"DQN": DQN, "SAC": SAC}[setting.algo]
    vec = DummyVecEnv([lambda: Monitor(flipping)])
    return algorithm("MlpPolicy", vec, seed=seed, device="cpu", **setting.keywords, **buffer), flipping
