"""Policies compared on the same episodes: common random numbers for the environment and for the sampled actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, distributions, nn

from rollsight.adapters.sb3.environments import make_environments
from rollsight.errors import RollsightError

_AT_ONCE = 32
_EPISODE = 0xC124  # the purpose in the keys of episodes' random streams

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


class CommonEpisodes:
    """Plays the same episodes with every policy it is given.

    Episode e starts from its own environment seed and draws its actions from its own uniform numbers, both keyed by
    (key, e). Equal policies have equal returns, and a policy's returns do not depend on the policies played before it.
    """

    def __init__(self, env: str, episodes: int, key: tuple[int, ...]) -> None:
        self._episodes, self._key = episodes, (*key, _EPISODE)
        self._envs = make_environments(env, min(episodes, _AT_ONCE))
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
        obs = self._envs.reset()
        if self._envs.action_space != policy.action_space:
            raise RollsightError(
                f"the policy acts in {policy.action_space} and the environment takes {self._envs.action_space}: the "
                "run's environment was wrapped in a way that its name does not say"
            )
        while any(slot.episode is not None for slot in self._slots):
            with torch.no_grad():
                distribution = policy.get_distribution(_observed(policy, obs)).distribution
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
        self._over = False
        sequence = np.random.SeedSequence((*self._key, self.episode))
        self.noise = np.random.default_rng(sequence)
        self._last, info = self.env.reset(seed=int(sequence.generate_state(1)[0] >> 1), options=options)
        return self._last, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.episode is None:
            return self._last, 0.0, False, False, {}
        obs, reward, terminated, truncated, info = self.env.step(action)
        if "episode" in info:  # from Monitor, the innermost wrapper: the return before rewards are clipped
            self.returns[self.episode] = float(info["episode"]["r"])
            self._over = True
        return obs, float(reward), terminated, truncated, info


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


def _observed(policy: ActorCriticPolicy, obs: Any) -> Any:
    try:
        return policy.obs_to_tensor(obs)[0]
    except ValueError as error:
        raise RollsightError(
            f"the policy does not take the environment's observations ({str(error).splitlines()[0]}): the run's "
            "environment was wrapped in a way that its name does not say"
        ) from error
