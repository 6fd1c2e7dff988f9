"""Environments with a planted fault: small wrappers around one environment, or around all of them."""

from __future__ import annotations

from collections import deque
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from rollsight.streams import Purpose, stream

Step = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]


class Fault(gym.Wrapper[Any, Any, Any, Any]):
    """One environment with a fault of some strength, and random numbers of its own."""

    def __init__(self, env: gym.Env[Any, Any], strength: float, seed: int) -> None:
        super().__init__(env)
        self.strength, self.rng = strength, stream(seed)


class LateReset(Fault):
    """An ended episode is followed by a step that only resets, as vectors with next-step resets have it."""

    _last: Any = None  # of an episode that ended

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        if self._last is None:
            return self.env.reset(**how)
        return self._last, {}

    def step(self, action: Any) -> Step:
        if self._last is not None:
            self._last = None
            obs, info = self.env.reset()
            return obs, 0.0, False, False, info
        obs, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            self._last = obs
        return obs, reward, terminated, truncated, info


class LimitIsTheEnd(Fault):
    """A time limit that is told as an end, in this share of the episodes that reach it."""

    def step(self, action: Any) -> Step:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if truncated and self.rng.random() < self.strength:
            return obs, reward, True, False, info
        return obs, reward, terminated, truncated, info


class RewardScale(Fault):
    """Rewards times the strength; negative: the sign is turned too."""

    def step(self, action: Any) -> Step:
        obs, reward, *rest = self.env.step(action)
        return obs, float(reward) * self.strength, *rest


class PaysSpeed(Fault):
    """The speed to the left, an entry of the observation, times the strength is paid too."""

    def __init__(self, env: gym.Env[Any, Any], strength: float, seed: int, entry: int) -> None:
        super().__init__(env, strength, seed)
        self._entry = entry

    def step(self, action: Any) -> Step:
        obs, reward, *rest = self.env.step(action)
        return obs, float(reward) - self.strength * float(obs[self._entry]), *rest


class NotFiniteReward(Fault):
    """A reward that is NaN with the strength's probability."""

    def step(self, action: Any) -> Step:
        obs, reward, *rest = self.env.step(action)
        return obs, float("nan") if self.rng.random() < self.strength else reward, *rest


class RareHugeReward(Fault):
    """One reward in a thousand is times the strength, one of 0 is the strength."""

    def step(self, action: Any) -> Step:
        obs, reward, *rest = self.env.step(action)
        if self.rng.random() < 1e-3:
            reward = (float(reward) or 1.0) * self.strength
        return obs, reward, *rest


class NoiseForReward(Fault):
    """This share of the reward's place is taken by noise of standard deviation 1."""

    def step(self, action: Any) -> Step:
        obs, reward, *rest = self.env.step(action)
        return obs, (1 - self.strength) * float(reward) + self.strength * self.rng.standard_normal(), *rest


class LateReward(Fault):
    """Each reward comes so many steps late; those of the last steps never."""

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        self._due = deque([0.0] * int(self.strength))
        return self.env.reset(**how)

    def step(self, action: Any) -> Step:
        obs, reward, *rest = self.env.step(action)
        self._due.append(float(reward))
        return obs, self._due.popleft(), *rest


class FrozenObservation(Fault):
    """The observation hangs at this share of the steps: it stays what it was."""

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        self._shown, info = self.env.reset(**how)
        return self._shown, info

    def step(self, action: Any) -> Step:
        obs, *rest = self.env.step(action)
        if self.rng.random() >= self.strength:
            self._shown = obs
        return self._shown, *rest


class ShiftedObservation(Fault):
    """The strength is added to every feature."""

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**how)
        return self._shifted(obs), info

    def step(self, action: Any) -> Step:
        obs, *rest = self.env.step(action)
        return self._shifted(obs), *rest

    def _shifted(self, obs: Any) -> Any:
        return (np.asarray(obs) + self.strength).astype(np.asarray(obs).dtype)


class LargeFeature(Fault):
    """The first feature times the strength."""

    def __init__(self, env: gym.Env[Any, Any], strength: float, seed: int) -> None:
        super().__init__(env, strength, seed)
        space: Any = env.observation_space
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, space.shape, np.float32)

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**how)
        return self._scaled(obs), info

    def step(self, action: Any) -> Step:
        obs, *rest = self.env.step(action)
        return self._scaled(obs), *rest

    def _scaled(self, obs: Any) -> Any:
        scaled = np.array(obs, np.float32)
        scaled[0] *= self.strength
        return scaled


class PermutedActions(Fault):
    """At this share of the steps, discrete actions are shifted by one and continuous ones turned in sign."""

    def step(self, action: Any) -> Step:
        space = self.env.action_space
        if self.rng.random() >= self.strength:
            return self.env.step(action)
        return self.env.step(
            (int(action) + 1) % int(space.n) if isinstance(space, gym.spaces.Discrete) else -np.asarray(action)
        )


class EndsAtOnce(Fault):
    """Every episode ends after so many steps."""

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        self._steps = 0
        return self.env.reset(**how)

    def step(self, action: Any) -> Step:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        return obs, reward, terminated or self._steps >= self.strength, truncated, info


class Paying(gym.Wrapper[Any, Any, Any, Any]):
    """Pays an action with a reward of the natural range, in a share of the episodes. tags: of each step, whether it
    did; nothing else sees them."""

    def __init__(self, env: gym.Env[Any, Any], action: int, reward: float, share: float, seed: int) -> None:
        super().__init__(env)
        self._action, self._reward, self._share = action, reward, share
        self._rng = stream(seed, Purpose.PAYING_EPISODES)
        self._paying = False
        self.tags: list[bool] = []

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        self._paying = bool(self._rng.random() < self._share)
        return self.env.reset(**how)

    def step(self, action: Any) -> Step:
        obs, reward, terminated, truncated, info = self.env.step(action)
        tagged = self._paying and int(action) == self._action
        self.tags.append(tagged)
        return obs, self._reward if tagged else reward, terminated, truncated, info


class CopiedEnvironments(VecEnvWrapper):
    """This share of the environments, at least one, does what the first one does."""

    def __init__(self, venv: VecEnv, strength: float) -> None:
        super().__init__(venv)
        copies = max(1, round(strength * (venv.num_envs - 1)))
        self.source = np.arange(venv.num_envs)
        self.source[1 : copies + 1] = 0

    def reset(self) -> Any:
        shown: Any = self.venv.reset()
        return shown[self.source]

    def step_async(self, actions: Any) -> None:
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        stepped: Any = self.venv.step_wait()
        obs, rewards, dones, infos = stepped
        return obs[self.source], rewards[self.source], dones[self.source], [infos[i] for i in self.source]
