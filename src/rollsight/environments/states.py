"""Put an environment into a record's state: set the state that the observation tells, or replay the episode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import (
    AcrobotEnv,
    CartPoleEnv,
    Continuous_MountainCarEnv,
    MountainCarEnv,
    PendulumEnv,
)
from gymnasium.envs.toy_text import CliffWalkingEnv, FrozenLakeEnv, TaxiEnv
from gymnasium.wrappers import (
    ClipAction,
    ClipReward,
    DiscretizeAction,
    OrderEnforcing,
    PassiveEnvChecker,
    RecordEpisodeStatistics,
    RescaleAction,
    TimeLimit,
    TransformReward,
)
from stable_baselines3.common.monitor import Monitor

from rollsight.arrays import Array
from rollsight.environments.episode_start import EpisodeStart, restart
from rollsight.errors import RollsightError

Env: TypeAlias = gym.Env[Any, Any]

EXACT = 1e-5  # the tolerance where the environment alone decides what is seen
DRIFTING = 0.1  # where it was normalised by statistics that moved on during the round; in their standard deviations


@dataclass(frozen=True, eq=False)
class BranchPoint:
    """Where a record stands in its episode.

    row: in the round's buffer.
    step: steps since the episode began.
    obs: flat, as the policy saw it.
    action: the record's, as the environment takes it.
    start: the `episode_start` of its episode; None where the run does not hold it.
    prefix: (step, ...) the actions before it, as the environment takes them; None where the run does not hold them.
    """

    row: int
    step: int
    obs: Array
    action: Any
    start: str | None = None
    prefix: Array | None = None

    @property
    def replayable(self) -> bool:
        return self.start is not None and self.prefix is not None


def can_be_set(env: Env) -> bool:
    """Whether the observation says all there is to know of the environment's state, apart from the time."""
    layer, inner = env, env.unwrapped
    while isinstance(layer, gym.Wrapper):
        if type(layer) not in _PASSIVE:  # it may show something else, or have a state of its own
            return False
        layer = layer.env
    if isinstance(inner, TaxiEnv) and getattr(inner, "fickle_passenger", False):
        return False  # whether the passenger changes his mind is hidden
    return type(inner) in _SETTERS  # exactly: a subclass may hold more


def set_state(env: Env, point: BranchPoint) -> None:
    """Put an environment that `can_be_set` into the record's state, its time limit included.

    States are as exact as the observation, which has float32 where classic control computes in float64.
    """
    _SETTERS[type(env.unwrapped)](env.unwrapped, point.obs)
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, TimeLimit):
            layer.__dict__["_elapsed_steps"] = point.step  # declared as None there
        if isinstance(layer, Monitor):
            layer.needs_reset = False
        layer = layer.env


def replay(env: Env, point: BranchPoint, see: Callable[[Any], Array], tolerance: float = EXACT) -> None:
    """Start the record's episode again and repeat its actions up to the record.

    tolerance: by how much, absolutely and relatively, the observation may differ from the stored one.

    Raises `RollsightError` where that does not arrive at the stored observation.
    """
    assert point.start is not None
    assert point.prefix is not None
    try:
        obs = restart(env, point.start)
    except (ValueError, KeyError, TypeError) as error:
        raise RollsightError(
            f"{name_of(env)}: the stored random state of an episode does not fit ({error})."
        ) from error
    for done, action in enumerate(point.prefix):
        obs, _, terminated, truncated, _ = env.step(_plain(action))
        if (terminated or truncated) and done + 1 < point.step:
            raise _not_reproduced(env, point.step, f"the episode ended after {done + 1} steps")
    check_reproduced(env, see(obs), point.obs, point.step, tolerance)


def check_reproduced(env: Env, seen: Array, stored: Array, step: int, tolerance: float = EXACT) -> None:
    """Raise `RollsightError` where an episode that was played again shows another observation (D,) than is stored."""
    if seen.shape != stored.shape:
        raise _not_reproduced(env, step, f"the observation has {seen.size} numbers and the stored {stored.size}")
    if not np.allclose(seen, stored, rtol=tolerance, atol=tolerance, equal_nan=True):
        worst = np.abs(seen.astype(np.float64) - stored.astype(np.float64)).max()
        raise _not_reproduced(env, step, f"the observation differs from the stored one by {worst:.3g}")


def _plain(action: Any) -> Any:
    """A discrete action as the integer that environments expect."""
    return int(action) if np.ndim(action) == 0 else action


def _not_reproduced(env: Env, step: int, problem: str) -> RollsightError:
    return RollsightError(
        f"{name_of(env)} cannot be branched: replaying an episode to its step {step} does not reproduce what the "
        f"run recorded ({problem}); the environment has hidden random state, or was made or wrapped differently."
    )


def name_of(env: Env) -> str:
    return type(env.unwrapped).__name__ if env.spec is None else env.spec.id


def _set_toy_text(env: Any, obs: Array) -> None:
    env.s, env.lastaction = int(obs[0]), None


def _set_cart_pole(env: Any, obs: Array) -> None:
    env.state, env.steps_beyond_terminated = obs.astype(np.float64), None


def _set_acrobot(env: Any, obs: Array) -> None:
    cos1, sin1, cos2, sin2, velocity1, velocity2 = obs.astype(np.float64)
    env.state = np.array([np.arctan2(sin1, cos1), np.arctan2(sin2, cos2), velocity1, velocity2])


def _set_mountain_car(env: Any, obs: Array) -> None:
    env.state = (float(obs[0]), float(obs[1]))


def _set_continuous_mountain_car(env: Any, obs: Array) -> None:
    env.state = obs.astype(np.float32)


def _set_pendulum(env: Any, obs: Array) -> None:
    cos, sin, velocity = obs.astype(np.float64)
    env.state, env.last_u = np.array([np.arctan2(sin, cos), velocity]), None


# Wrappers that show the observation as it is, and whose state, if they have any, does not matter or is set as well.
_PASSIVE = {
    *(OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, TimeLimit, Monitor, EpisodeStart),
    *(ClipReward, TransformReward, ClipAction, RescaleAction, DiscretizeAction),
}
_SETTERS: dict[type, Callable[[Any, Array], None]] = {
    FrozenLakeEnv: _set_toy_text,
    CliffWalkingEnv: _set_toy_text,
    TaxiEnv: _set_toy_text,
    CartPoleEnv: _set_cart_pole,
    AcrobotEnv: _set_acrobot,
    MountainCarEnv: _set_mountain_car,
    Continuous_MountainCarEnv: _set_continuous_mountain_car,
    PendulumEnv: _set_pendulum,
}
