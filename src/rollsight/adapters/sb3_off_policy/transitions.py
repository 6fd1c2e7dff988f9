"""Which transition lies in which place of a replay buffer: followed while the buffer fills and wraps around."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rollsight.arrays import Array, Bools

UNKNOWN = -1  # step and episode of a transition that was added while nobody followed


@dataclass
class Ended:
    """Episodes that ended since the last round.

    returns: of those whose beginning was seen, in the environment's own reward.
    lengths: of the same episodes.
    terminated: how many of all ended by themselves.
    truncated: how many were cut off by a time limit.
    """

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    terminated: int = 0
    truncated: int = 0

    def numbers(self) -> dict[str, Any]:
        """Entries of the round's summary."""
        known = bool(self.returns)
        return {
            "episodes": len(self.returns),
            "return_mean": float(np.mean(self.returns)) if known else None,
            "return_std": float(np.std(self.returns)) if known else None,
            "episode_length_mean": float(np.mean(self.lengths)) if known else None,
            "episodes_terminated": self.terminated,
            "episodes_truncated": self.truncated,
        }


class Transitions:
    """Environment, step and episode of every transition in a replay buffer.

    step, episode, episode_step: (positions, envs) integers, `UNKNOWN` where nothing was followed. A step counts its
        environment's steps from 0, an episode's number is unique over environments.
    """

    def __init__(self, positions: int, envs: int, first_episode: int = 0) -> None:
        self.step, self.episode, self.episode_step = (np.full((positions, envs), UNKNOWN) for _ in range(3))
        self.ended = Ended()
        self._returns: list[float] = [np.nan] * first_episode  # of each episode, by its number; nan: not known
        self._steps = 0
        self._next: int | None = None  # the place of the next transition, if nobody else adds any
        self._current = self._age = np.empty(0, np.int64)
        self._total = np.empty(0)

    def begin(self, *, reset: bool, steps: int) -> None:
        """Training begins. reset: whether the environments were; steps: of each environment so far."""
        self._steps = steps
        if reset or not len(self._current):
            envs = self.step.shape[1]
            self._current = self._new_episodes(envs)
            self._age = np.zeros(envs, np.int64)
            self._total = np.full(envs, 0.0 if reset else np.nan)  # of a running episode the beginning was not seen

    def add(self, position: int, reward: Any, dones: Bools, truncated: Bools) -> None:
        """Note what the host is about to store at this position: a step of all environments.

        reward: (envs,) as the environment gave it. dones: (envs,) whether an episode ended; truncated: whether by a
        time limit.
        """
        if self._next is not None and position != self._next:  # somebody else added some
            others = np.arange(self._next, self._next + (position - self._next) % len(self.step)) % len(self.step)
            self.step[others] = self.episode[others] = self.episode_step[others] = UNKNOWN
        self.step[position] = self._steps
        self.episode[position], self.episode_step[position] = self._current, self._age
        self._next = (position + 1) % len(self.step)
        self._steps += 1
        self._age = self._age + 1
        self._total = self._total + np.asarray(reward, np.float64)
        if dones.any():
            self._end(np.flatnonzero(dones), truncated)

    def end(self, position: int) -> None:
        """Training ends. position: of the next transition; what was noted there was not stored: a callback stopped
        training at that step."""
        if self._next == (position + 1) % len(self.step):
            self.step[position] = self.episode[position] = self.episode_step[position] = UNKNOWN
            self._next = position

    def episode_return(self, episode: Array) -> Array:
        """The returns of the episodes of these numbers; nan of those that go on or whose beginning was not seen."""
        returns = np.array([*self._returns, np.nan])
        return returns[np.where(episode == UNKNOWN, len(returns) - 1, episode)]

    def take_ended(self) -> Ended:
        """The episodes that ended since the last call."""
        ended, self.ended = self.ended, Ended()
        return ended

    def _end(self, envs: Array, truncated: Bools) -> None:
        for env in envs.tolist():
            total = float(self._total[env])
            self._returns[self._current[env]] = total
            self.ended.truncated += bool(truncated[env])
            self.ended.terminated += not truncated[env]
            if not np.isnan(total):
                self.ended.returns.append(total)
                self.ended.lengths.append(int(self._age[env]))
        self._current = self._current.copy()
        self._current[envs] = self._new_episodes(len(envs))
        self._age[envs], self._total[envs] = 0, 0.0

    def _new_episodes(self, count: int) -> Array:
        first = len(self._returns)
        self._returns += [np.nan] * count
        return np.arange(first, first + count)
