"""A gymnasium wrapper that notes how each episode started, so that it can be started again."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym

START = "rollsight_episode_start"


class EpisodeStart(gym.Wrapper[Any, Any, Any, Any]):
    """Puts into the info of every reset what reproduces it: the seed, or the random generator's state just before the
    reset.

    The entry `rollsight_episode_start` is a JSON text, `{"seed": 3}` or `{"state": {...}}`.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        start = {"seed": seed} if seed is not None else {"state": self.unwrapped.np_random.bit_generator.state}
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, {**info, START: json.dumps(start, default=_plain)}


def _plain(value: Any) -> Any:
    # Some bit generators keep arrays in their state.
    return value.tolist()
