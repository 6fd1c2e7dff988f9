"""Environments brought back to where a run stood: recorded episodes are started and played again, action by action."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rollsight import runs
from rollsight.adapters.gymnasium import restart

Array = np.ndarray[Any, Any]


def restored(
    envs: Sequence[gym.Env[Any, Any]], starts: Sequence[str | None], begins: Sequence[bool], run: runs.Run, round: int
) -> list[Any] | None:
    """The observations that environments show at the end of a round, once their episodes under way then are played
    again; None where one cannot be.

    starts: how each of those episodes started (`adapters.gymnasium.EpisodeStart`); begins: those of which no step was
    made yet. The caller compares the observations with those that were seen: an environment may draw random numbers
    that its start does not hold.
    """
    shown = []
    for number, (env, start, fresh) in enumerate(zip(envs, starts, begins, strict=True)):
        # An emulator's state is a pickle: a folder from elsewhere could execute code by it.
        if start is None or "ale" in json.loads(start):
            return None
        actions = [] if fresh else _episode_under_way(run, round, number)
        if actions is None:
            return None
        obs = restart(env, start)
        for action in actions:
            obs, *_ = env.step(taken(action, env.action_space))
        shown.append(obs)
    return shown


def rounds_of_actions(run: runs.Run, after: int, last: int) -> Iterator[Array]:
    """(T, E, ...) recorded actions of each round from `after` + 1 to `last`."""
    for round in range(after + 1, last + 1):
        table = run.sql(f"select step, env, action from records where round = {round} order by step, env").fetchall()
        envs = 1 + max(env for _, env, _ in table)
        actions = np.array([action for *_, action in table])
        yield actions.reshape(-1, envs, *actions.shape[1:])


def taken(action: Any, space: gym.Space[Any]) -> Any:
    """A recorded action as the environment takes it: in its type, Gaussian ones clipped to the space."""
    if isinstance(space, gym.spaces.Discrete):
        return int(action)
    numbers = np.asarray(action).astype(space.dtype).reshape(space.shape or ())
    return numbers.clip(space.low, space.high) if isinstance(space, gym.spaces.Box) else numbers


def _episode_under_way(run: runs.Run, round: int, env: int) -> list[Any] | None:
    """The actions of the episode that an environment was in at the end of a round, from its beginning; None where the
    run does not hold all of them."""
    found: list[tuple[int, Any]] = []
    episode = None
    for earlier in range(round, 0, -1):
        rows = run.sql(
            f"select episode, episode_step, action from records where round = {earlier} and env = {env} order by step"
        ).fetchall()
        if not rows:
            return None
        episode = rows[-1][0] if episode is None else episode
        found = [(step, action) for number, step, action in rows if number == episode] + found
        if found and found[0][0] == 0:
            return [action for _, action in found]
        if rows[0][0] != episode:  # it began in this round, unseen
            return None
    return None
