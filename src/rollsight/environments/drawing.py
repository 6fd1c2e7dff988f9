"""What an observation shows: the picture of it, where it says all of the environment's state."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np

from rollsight.arrays import Array
from rollsight.environments.grids import draw_grid
from rollsight.environments.make import check_environment, observations_of
from rollsight.environments.plain_values import decode
from rollsight.environments.states import BranchPoint, Env, can_be_set, set_state
from rollsight.errors import RollsightError

_UNCHANGING = {"VecTransposeImage", "VecMonitor", "VecCheckNan"}  # what the policy sees is still the observation
_ATARI = 84  # pixels of its frames


class Drawing:
    """Draws observations of one environment: classic control, toy text, MiniGrid, Atari's frames. For use in one
    thread.

    metadata: of the run, as its `run.json` has it.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self._name = str(metadata.get("env") or "")

    def of(self, observed: Array) -> Array | None:
        """The observation (D,) as a picture (H, W, 3) of bytes; None where it does not say enough.

        Raises:
            RollsightError: the environment cannot draw itself.
        """
        if not self._sees_all:
            return None
        kind = observations_of(self._name)
        if kind == "minigrid" or self._name.startswith("BabyAI-"):
            return draw_grid(observed, self.channels_first)
        if kind == "atari":
            return _last_frame(observed, self.channels_first)
        if (env := self._settable) is None or observed.size != gym.spaces.flatdim(_numbers(env.observation_space)):
            return None
        set_state(env, BranchPoint(0, 0, observed, None))
        return rendered(env, self._name)

    def close(self) -> None:
        """Close the environment, if there was one to draw with."""
        if (env := self.__dict__.pop("_settable", None)) is not None:
            env.close()

    @property
    def channels_first(self) -> bool:
        """Whether images are stored as (channels, height, width)."""
        return "VecTransposeImage" in (self._metadata.get("env_wrappers") or [])

    @property
    def _sees_all(self) -> bool:
        """Whether the stored observations are the environment's own."""
        harmless = {"VecFrameStack"} if observations_of(self._name) == "atari" else {"ImgObsWrapper"}
        return not {str(name) for name in self._metadata.get("env_wrappers") or []} - _UNCHANGING - harmless

    @cached_property
    def _settable(self) -> Env | None:
        """The bare environment, if its state can be set from what it shows; ready to be set."""
        described = self._metadata.get("environment") or {}
        keywords = decode(described.get("kwargs") or {}) or dict(self._metadata.get("env_kwargs") or {})
        if "map_name" in keywords and keywords["map_name"] is None and keywords.get("desc") is None:
            return None  # FrozenLake on a map of its own, which nobody knows
        try:
            check_environment(self._name)
            env = gym.make(self._name, **{**keywords, "render_mode": "rgb_array"})
            if not can_be_set(env):
                return None
            space = self._metadata.get("observation_space")
            if space is not None and space != str(env.observation_space):
                return None  # a wrapper showed something else
            env.reset(seed=0)
        except (RollsightError, gym.error.Error, TypeError, ImportError):
            return None
        return env


def rendered(env: Env, name: str) -> Array:
    """The environment's frame (H, W, 3).

    Raises:
        RollsightError: it has none, in one sentence with the reason.
    """
    try:
        picture: Any = env.render()
    except Exception as error:  # of an environment's own code
        raise RollsightError(f"{name} cannot be drawn ({type(error).__name__}: {error})") from error
    if not isinstance(picture, np.ndarray) or picture.ndim != 3:
        raise RollsightError(f"{name} cannot be drawn: its frame is a {type(picture).__name__}")
    return picture[..., :3].astype(np.uint8)


def _last_frame(observed: Array, channels_first: bool) -> Array | None:
    """(H, W, 3) the newest of the stacked frames; None for observations of another size."""
    count, rest = divmod(observed.size, _ATARI * _ATARI)
    if rest or not count:
        return None
    shape = (count, _ATARI, _ATARI) if channels_first else (_ATARI, _ATARI, count)
    frames = observed.reshape(shape)
    newest = frames[-1] if channels_first else frames[..., -1]
    return np.repeat(newest.astype(np.uint8)[..., None], 3, axis=-1).repeat(2, axis=0).repeat(2, axis=1)


def _numbers(space: Any) -> gym.Space[Any]:
    """The space of what a record stores: a discrete state is one number."""
    return gym.spaces.Box(-np.inf, np.inf, (1,)) if isinstance(space, gym.spaces.Discrete) else space
