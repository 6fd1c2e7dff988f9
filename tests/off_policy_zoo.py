"""Small models with replay buffers, for the tests of their adapter."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from sb3_zoo import Toy, make_env
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

ALGORITHMS = {"DQN": DQN, "SAC": SAC, "TD3": TD3, "DDPG": DDPG}


def toy(algo: str, obs: str = "box") -> gym.Env[Any, Any]:
    """One environment, for held-out episodes."""
    return Monitor(gym.wrappers.TimeLimit(Toy(obs, "discrete" if algo == "DQN" else "box"), 9))


def make_model(
    algo: str = "DQN", obs: str = "box", n_envs: int = 1, normalize: bool = False, env: Any = None, **keywords: Any
) -> Any:
    """A model with a buffer of 60 transitions, which 200 steps fill more than three times."""
    settings: dict[str, Any] = {
        "buffer_size": 60,
        "learning_starts": 20,
        "batch_size": 16,
        "seed": 7,
        "device": "cpu",
        "learning_rate": 0.01,
        "gamma": 0.9,
        "policy_kwargs": {"net_arch": [8]},
    }
    if algo == "DQN":
        settings |= {"train_freq": 2, "target_update_interval": 20}
    action = "discrete" if algo == "DQN" else "box"
    policy = "MultiInputPolicy" if obs == "dict" else "MlpPolicy"
    made = make_env(obs, action, n_envs, normalize) if env is None else env
    model = ALGORITHMS[algo](policy, made, **{**settings, **keywords})
    model.set_logger(Logger(None, []))
    return model


def fingerprint(model: Any) -> dict[str, bytes]:
    """All that the rest of a training depends on: parameters of all networks, optimisers, buffer, random states."""
    optimizers = [model.policy.optimizer] if isinstance(model, DQN) else [model.actor.optimizer, model.critic.optimizer]
    states = [state for one in optimizers for state in one.state_dict()["state"].values()]
    buffer, normalizer = model.replay_buffer, model.get_vec_normalize_env()
    columns = buffer.observations if isinstance(buffer.observations, dict) else {"": buffer.observations}
    return {
        "parameters": b"".join(p.detach().numpy().tobytes() for p in model.policy.parameters()),
        "optimizers": pickle.dumps([[torch.as_tensor(v).numpy().tobytes() for v in one.values()] for one in states]),
        "buffer": pickle.dumps([buffer.actions, buffer.rewards, buffer.pos, list(columns.values())]),
        "numpy": pickle.dumps(np.random.get_state()),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "spaces": pickle.dumps(model.action_space.np_random.bit_generator.state),
        "statistics": pickle.dumps(None if normalizer is None else (normalizer.ret_rms.mean, normalizer.returns)),
    }


class Labelled(gym.Env[Any, Any]):
    """Observes its own number, its steps so far and its episodes so far; pays 1 a step.

    length: steps of an episode, which then terminates.
    """

    action_space = spaces.Discrete(2)

    def __init__(self, number: int = 0, length: int = 5) -> None:
        self.observation_space = spaces.Box(-1, np.inf, (3,), np.float64)
        self._number, self._length = number, length
        self._steps, self._episodes, self._age = 0, -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._episodes, self._age = self._episodes + 1, 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps, self._age = self._steps + 1, self._age + 1
        return self._observe(), 1.0, self._age == self._length, False, {}

    def _observe(self) -> Any:
        return np.array([self._number, self._steps, self._episodes], np.float64)


def labelled(n_envs: int) -> DummyVecEnv:
    """So many environments, with episodes of 5, 6, ... steps."""
    return DummyVecEnv([lambda i=i: Labelled(i, 5 + i) for i in range(n_envs)])  # type: ignore[misc]
