"""Environments brought back to where a run stood: what it recorded is played again, action by action."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow.compute as pc

from rollsight import runs
from rollsight.arrays import Array
from rollsight.environments.episode_start import restart


@dataclass(frozen=True, eq=False)
class History:
    """What environments went through to the end of a round.

    run: the run folder.
    round: number of the round.
    starts: how each environment's episode under way started (`environments.episode_start`), None where that was not
        noted.
    begins: whether no step of it was made yet.
    after: the round after which their random streams were keyed, 0 in a run that was never interrupted.
    """

    run: runs.Run
    round: int
    starts: Sequence[str | None]
    begins: Sequence[bool]
    after: int = 0

    def episodes_under_way(self, envs: Sequence[gym.Env[Any, Any]]) -> list[Any] | None:
        """Start the episodes under way again in these environments and play them as far as they had come; what each
        environment shows then. None where one cannot be restored.

        The caller compares that with what was seen: an environment may draw random numbers that its start does not
        hold.
        """
        shown = []
        for number, (env, start, fresh) in enumerate(zip(envs, self.starts, self.begins, strict=True)):
            # An emulator's state is a pickle: a folder from elsewhere could execute code by it.
            if start is None or "ale" in json.loads(start):
                return None
            actions = [] if fresh else self._episode_under_way(number)
            if actions is None:
                return None
            obs = restart(env, start)
            for action in actions:
                obs, *_ = env.step(_taken(action, env.action_space))
            shown.append(obs)
        return shown

    def rounds_of_actions(self) -> Iterator[Array]:
        """(T, E, ...) recorded actions of each round since the environments' streams were keyed."""
        for round in range(self.after + 1, self.round + 1):
            recorded = self.run.records(round)
            # Records are stored one environment after the other.
            actions = np.array(recorded["action"].to_pylist())
            yield actions.reshape(len(self.starts), -1, *actions.shape[1:]).swapaxes(0, 1)

    def _episode_under_way(self, env: int) -> list[Any] | None:
        """Its actions from its beginning; None where the run does not hold all of them."""
        found: list[Any] = []
        episode = None
        for round in range(self.round, self.after, -1):
            recorded = self.run.records(round).filter(pc.field("env") == env)
            numbers = recorded["episode"].to_numpy()
            episode = numbers[-1] if episode is None else episode
            mine = np.flatnonzero(numbers == episode)
            if not len(mine):
                return None
            found = recorded["action"].take(mine).to_pylist() + found
            if recorded["episode_step"][int(mine[0])].as_py() == 0:
                return found
        return None


def _taken(action: Any, space: gym.Space[Any]) -> Any:
    """A recorded action as the environment takes it: in its type, Gaussian ones clipped to the space."""
    if isinstance(space, gym.spaces.Discrete):
        return int(action)
    numbers = np.asarray(action).astype(space.dtype).reshape(space.shape or ())
    return numbers.clip(space.low, space.high) if isinstance(space, gym.spaces.Box) else numbers
