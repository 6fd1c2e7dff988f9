"""Vector wrappers around environments that are made again: many side by side, or one alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from rollsight.environments.wrappers import Layer, make_wrapper

Statistics = Sequence[Mapping[str, Any]]
"""Of each `VecNormalize`, the innermost first: the moments of `obs` (None where those stay) and of `reward`."""


def statistics_of(venv: VecEnv) -> list[dict[str, Any]]:
    """What every `VecNormalize` around the environments has seen so far, the innermost first, as plain values."""
    found = []
    while isinstance(venv, VecEnvWrapper):
        if isinstance(venv, VecNormalize):
            found.append({"obs": _moments(venv.obs_rms) if venv.norm_obs else None, "reward": _moments(venv.ret_rms)})
        venv = venv.venv
    return found[::-1]


def wrap_vector(venv: VecEnv, layers: Sequence[Layer], statistics: Statistics = ()) -> VecEnv:
    """The environments inside the vector wrappers that these layers describe, the innermost first.

    `VecNormalize` keeps to the given statistics: it learns nothing more from what is played.
    """
    seen = iter(statistics)
    for layer in layers:
        venv = make_wrapper(layer, VecEnvWrapper, venv)  # type: ignore[type-abstract]
        if isinstance(venv, VecNormalize):
            known, venv.training = next(seen), False
            venv.ret_rms = _running(known["reward"])
            if venv.norm_obs:
                venv.obs_rms = _running(known["obs"])
    return venv


def seen_alone(env: gym.Env[Any, Any], layers: Sequence[Layer], statistics: Statistics = ()) -> gym.Env[Any, Any]:
    """One environment as a policy sees it through these vector wrappers. Its rewards stay its own."""
    # Images are transposed by the policy itself where nothing else looks at them.
    if all(layer["wrapper"].endswith(":VecTransposeImage") for layer in layers):
        return env
    return SeenAlone(env, layers, statistics)


class SeenAlone(gym.Wrapper[Any, Any, Any, Any]):
    """One environment inside vector wrappers, as a gymnasium environment. Copies by pickle go on where it stands."""

    def __init__(self, env: gym.Env[Any, Any], layers: Sequence[Layer], statistics: Statistics) -> None:
        super().__init__(env)
        self._described = (layers, statistics)
        self._inner = _One([lambda: env])
        self._outer = wrap_vector(self._inner, layers, statistics)
        self.observation_space = self._outer.observation_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._inner._seeds, self._inner._options = [seed], [options or {}]
        obs = self._outer.reset()
        return _alone(obs), self._inner.reset_infos[0] or {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, _, (info,) = self._outer.step([action])  # type: ignore[arg-type]
        return _alone(obs), *self._inner.outcome, info

    def __getstate__(self) -> dict[str, Any]:
        # The wrappers themselves hold what cannot be pickled; of their states, only stacked frames change.
        return {"env": self.env, "described": self._described, "stacks": [w.stacked_obs for w in self._stacking()]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        SeenAlone.__init__(self, state["env"], *state["described"])
        for wrapper, stack in zip(self._stacking(), state["stacks"], strict=True):
            wrapper.stacked_obs = stack

    def _stacking(self) -> list[VecFrameStack]:
        found, venv = [], self._outer
        while isinstance(venv, VecEnvWrapper):
            if isinstance(venv, VecFrameStack):
                found.append(venv)
            venv = venv.venv
        return found


class _One(DummyVecEnv):
    """One environment, which is not reset at the end of an episode. outcome: its own reward, terminated, truncated."""

    outcome: tuple[float, bool, bool]

    def step_wait(self) -> VecEnvStepReturn:
        obs, reward, terminated, truncated, info = self.envs[0].step(self.actions[0])
        self.outcome = (float(reward), terminated, truncated)
        self._save_obs(0, obs)
        return self._obs_from_buf(), np.array([reward], np.float32), np.zeros(1, bool), [info]


def _alone(obs: Any) -> Any:
    """The one row, copied: some wrappers write the next step into the same array."""
    return {key: part[0].copy() for key, part in obs.items()} if isinstance(obs, dict) else obs[0].copy()


def _moments(running: RunningMeanStd | dict[str, RunningMeanStd]) -> dict[str, Any]:
    if isinstance(running, dict):  # of observations that are dicts
        return {"parts": {key: _moments(part) for key, part in running.items()}}
    return {"mean": running.mean.tolist(), "var": running.var.tolist(), "count": float(running.count)}


def _running(moments: Mapping[str, Any]) -> Any:
    if "parts" in moments:
        return {key: _running(part) for key, part in moments["parts"].items()}
    mean = np.asarray(moments["mean"], np.float64)
    running = RunningMeanStd(shape=mean.shape)
    running.mean, running.var, running.count = mean, np.asarray(moments["var"], np.float64), moments["count"]
    return running
