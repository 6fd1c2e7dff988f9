"""A gymnasium wrapper that notes how each episode started, so that it can be started again."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from typing import Any

import gymnasium as gym

START = "rollsight_episode_start"


class EpisodeStart(gym.Wrapper[Any, Any, Any, Any]):
    """Puts into the info of every reset what reproduces it: the seed, or the random generator's state just before the
    reset, and for Atari the emulator's.

    The entry `rollsight_episode_start` is a JSON text, `{"seed": 3}` or `{"state": {...}}`; `restart` takes it.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        start = {"seed": seed} if seed is not None else _state_of(self.unwrapped)
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, {**info, START: json.dumps(start, default=_plain)}


def restart(env: gym.Env[Any, Any], start: str) -> Any:
    """Reset the environment as `EpisodeStart` noted it; returns the first observation.

    Raises ValueError, KeyError or TypeError where the noted state is that of another kind of environment.
    """
    how = json.loads(start)
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if "was_real_done" in vars(layer):  # of wrappers that make a lost life an episode: start the game itself anew
            vars(layer)["was_real_done"] = True
        layer = layer.env
    if "seed" in how:
        return env.reset(seed=how["seed"])[0]
    env.unwrapped.np_random.bit_generator.state = how["state"]
    if "ale" in how:
        if not hasattr(env.unwrapped, "restore_state"):
            raise TypeError("it is an Atari emulator's")
        env.unwrapped.reset(seed=0)  # loads the game, into which the state goes, and leaves the wrappers alone
        env.unwrapped.np_random.bit_generator.state = how["state"]
        env.unwrapped.restore_state(_emulator_state(how["ale"]))
    return env.reset()[0]


def _state_of(env: Any) -> dict[str, Any]:
    state = {"state": env.np_random.bit_generator.state}
    if hasattr(env, "clone_state"):  # Atari's sticky actions are drawn by the emulator itself
        state["ale"] = b64encode(env.clone_state(include_rng=True).serialize()).decode()
    return state


def _emulator_state(text: str) -> Any:
    """An Atari emulator's state from its own bytes.

    Raises TypeError for a run of an earlier version, which stored a pickle: that is code, and is not loaded.
    """
    from ale_py import ALEState

    state = b64decode(text)
    if state.startswith(b"\x80"):
        raise TypeError("it is a pickle of an earlier version of Rollsight")
    return ALEState(state)


def _plain(value: Any) -> Any:
    # Some bit generators keep arrays in their state.
    return value.tolist()
