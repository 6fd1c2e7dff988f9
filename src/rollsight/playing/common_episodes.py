"""Policies compared on the same episodes: common random numbers for the environment and for the sampled actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.atari_wrappers import ClipRewardEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor, distributions, nn

from rollsight.arrays import Floats
from rollsight.errors import RollsightError
from rollsight.playing.spaces import check_spaces
from rollsight.streams import Purpose, seed_from, stream

_AT_ONCE = 32


class CommonEpisodes:
    """Plays the same episodes with every policy it is given.

    Episode e starts from its own environment seed and draws its actions from its own uniform numbers, both keyed by
    (key, e). Equal policies have equal returns, and a policy's returns do not depend on the policies played before it.

    Returns are of the rewards that the environment gave in training, before `VecNormalize`; of Atari games they are the
    scores, over all lives and before rewards are clipped.

    make: so many environments in one process, inside their vector wrappers.
    """

    def __init__(self, make: Callable[[int], VecEnv], episodes: int, key: tuple[int, ...]) -> None:
        self._episodes, self._key = episodes, (*key, Purpose.EPISODE)
        self._envs = make(min(episodes, _AT_ONCE))
        base = self._envs.unwrapped
        assert isinstance(base, DummyVecEnv)
        self._slots = [_Slot(one, self._key) for one in base.envs]
        base.envs = list(self._slots)

    def __call__(self, policy: nn.Module) -> Floats:
        """(episodes,) undiscounted returns of the stochastic policy.

        Raises:
            RollsightError: the policy is none of Stable-Baselines3's, or it does not fit the environment.
        """
        if not isinstance(policy, ActorCriticPolicy) or policy.squash_output:
            raise RollsightError(
                f"a policy of class {type(policy).__name__} cannot be played here: it must be an actor-critic policy "
                "of Stable-Baselines3 without squashed output"
            )
        numbers = iter(range(self._episodes))
        for slot in self._slots:
            slot.begin(numbers)
        policy.set_training_mode(False)
        check_spaces(policy, self._envs.observation_space, self._envs.action_space)
        obs: Any = self._envs.reset()
        while any(slot.episode is not None for slot in self._slots):
            with torch.no_grad():
                distribution = policy.get_distribution(policy.obs_to_tensor(obs)[0]).distribution
                sampled = sample(distribution, self._uniform).numpy()
                actions = sampled.reshape(-1, *(policy.action_space.shape or ()))
            if isinstance(policy.action_space, gym.spaces.Box):
                actions = np.clip(actions, policy.action_space.low, policy.action_space.high)
            obs, *_ = self._envs.step(actions)
        returns = {episode: value for slot in self._slots for episode, value in slot.returns.items()}
        return np.array([returns[episode] for episode in range(self._episodes)])

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()

    def _uniform(self, size: int) -> Tensor:
        """(environments, size) uniform numbers, each row from its episode's stream."""
        return torch.from_numpy(np.stack([slot.noise.random(size) for slot in self._slots]))


class _Slot(gym.Wrapper[Any, Any, Any, Any]):
    """One of the environments side by side: plays the next episode that nobody plays yet, then stands still."""

    def __init__(self, env: gym.Env[Any, Any], key: tuple[int, ...]) -> None:
        super().__init__(env)
        self._key = key
        self._last: Any = None
        layers = list(_layers(env))
        self._lives = [layer for layer in layers if "was_real_done" in vars(layer)]
        self._clipped = any(isinstance(layer, ClipRewardEnv) for layer in layers)
        self.begin(iter(()))

    def begin(self, numbers: Iterator[int]) -> None:
        self._numbers, self.returns = numbers, dict[int, float]()
        self.episode: int | None = None
        self._over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if not self._over:  # a life was lost, the episode goes on
            return self.env.reset(options=options)
        self.episode = next(self._numbers, None)
        if self.episode is None:
            return self._last, {}
        self._over, self._total = False, 0.0
        self.noise = stream(*self._key, self.episode)
        self._last, info = self.env.reset(seed=seed_from(*self._key, self.episode) >> 1, options=options)
        return self._last, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.episode is None:
            return self._last, 0.0, False, False, {}
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._total += float(reward)
        if (terminated or truncated) and all(vars(layer)["was_real_done"] for layer in self._lives):
            # Monitor, inside the clipping, knows the score.
            score = info["episode"]["r"] if self._clipped and "episode" in info else self._total
            self.returns[self.episode] = float(score)
            self._over = True
        return obs, float(reward), terminated, truncated, info


def _layers(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


def sample(distribution: Any, uniform: Callable[[int], Tensor]) -> Tensor:
    """Actions (n,) or (n, d) from uniform numbers, which `uniform(size)` gives as (n, size).

    Similar distributions get equal actions where they can: the Gumbel-max trick for categories, the inverse of the
    cumulative distribution for numbers and bits.
    """
    match distribution:
        case distributions.Categorical():
            return _gumbel_max(distribution.logits, uniform(distribution.logits.shape[1]))
        case list():
            sizes = [one.logits.shape[1] for one in distribution]
            parts = uniform(sum(sizes)).split(sizes, dim=1)
            return torch.stack([_gumbel_max(one.logits, u) for one, u in zip(distribution, parts, strict=True)], 1)
        case distributions.Bernoulli():
            bits: Tensor = uniform(distribution.probs.shape[1]) < distribution.probs
            return bits.long()
        case distributions.Normal():
            quantile = torch.special.ndtri(uniform(distribution.loc.shape[1]).clamp(1e-12, 1 - 1e-12))
            numbers: Tensor = distribution.loc + distribution.scale * quantile.to(distribution.loc)
            return numbers
    raise RollsightError(f"actions of a {type(distribution).__name__} distribution cannot be sampled here")


def _gumbel_max(logits: Tensor, uniform: Tensor) -> Tensor:
    return (logits - torch.log(-torch.log(uniform))).argmax(1)
