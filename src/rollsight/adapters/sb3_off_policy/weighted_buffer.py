"""A replay buffer from which transitions can be drawn by weight."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from rollsight.arrays import Floats, Ints
from rollsight.errors import RollsightError


class WeightedReplayBuffer(ReplayBuffer):
    """`ReplayBuffer` whose transitions are drawn with probabilities in proportion to weights.

        DQN("MlpPolicy", "CartPole-v1", replay_buffer_class=WeightedReplayBuffer)

    Until `weigh` is called it draws exactly as the host's buffer does, of the same random numbers. Transitions that are
    stored later weigh 1, the mean of all. Draws are of NumPy's global stream, as the host's.
    """

    def __init__(self, buffer_size: int, observation_space: spaces.Space[Any], *args: Any, **keywords: Any) -> None:
        if isinstance(observation_space, spaces.Dict):
            raise RollsightError("WeightedReplayBuffer stores arrays, and these observations are dictionaries.")
        super().__init__(buffer_size, observation_space, *args, **keywords)
        if self.optimize_memory_usage:
            raise RollsightError("WeightedReplayBuffer stores next observations; leave out optimize_memory_usage=True.")
        self._cumulative: Floats | None = None  # over flat places, the oldest first, one more entry than places
        self._oldest = self._free = self._new = 0

    def weigh(self, weights: Floats | None) -> None:
        """Draw in proportion to these weights from now on; None: uniformly, as the host does.

        weights: (N,) for all that the buffer holds, row = position * n_envs + env, at least 0 and not all 0; they are
            scaled to a mean of 1.

        Raises:
            RollsightError: there are other than N, or some are not numbers of at least 0, or all are 0.
        """
        if weights is None:
            self._cumulative = None
            return
        count = self.size() * self.n_envs
        given = np.asarray(weights, np.float64)
        if given.shape != (count,):
            raise RollsightError(
                f"weights has shape {given.shape} and the buffer holds {count} transitions; give one each."
            )
        if not (np.isfinite(given).all() and (given >= 0).all() and given.any()):
            raise RollsightError("weights must be finite and at least 0, and not all 0; look at the rule's weights.")
        self._oldest = self.pos * self.n_envs if self.full else 0
        ordered = np.roll(given / given.mean(), -self._oldest)
        self._cumulative = np.concatenate([[0.0], np.cumsum(ordered)])
        self._free, self._new = self.buffer_size - self.size(), 0

    def add(self, *args: Any, **keywords: Any) -> None:
        super().add(*args, **keywords)
        self._new = min(self._new + 1, self.buffer_size)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        if self._cumulative is None:
            return super().sample(batch_size, env)
        positions, envs = np.divmod(self._draw(batch_size, self._cumulative), self.n_envs)
        data = (
            self._normalize_obs(self.observations[positions, envs], env),
            self.actions[positions, envs],
            self._normalize_obs(self.next_observations[positions, envs], env),
            (self.dones[positions, envs] * (1 - self.timeouts[positions, envs])).reshape(-1, 1),
            self._normalize_reward(self.rewards[positions, envs].reshape(-1, 1), env),
        )
        return ReplayBufferSamples(*map(self.to_torch, data))

    def _draw(self, count: int, cumulative: Floats) -> Ints:
        """Flat places: those stored since, uniformly, and what is left of the others, by weight."""
        places = self.buffer_size * self.n_envs
        gone = max(0, self._new - self._free) * self.n_envs  # the oldest are overwritten first
        below = cumulative[min(gone, len(cumulative) - 1)]
        old = cumulative[-1] - below
        drawn = np.random.random_sample(count) * (old + self._new * self.n_envs)
        by_weight = np.searchsorted(cumulative, np.minimum(below + drawn, np.nextafter(cumulative[-1], 0)), "right") - 1
        first_new = self._oldest + len(cumulative) - 1  # behind the newest of the weighed ones
        latest = np.maximum(drawn - old, 0).astype(np.int64)
        found: Ints = np.where(drawn < old, self._oldest + by_weight, first_new + latest) % places
        return found
