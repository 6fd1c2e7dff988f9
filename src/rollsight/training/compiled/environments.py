"""Environments stepped side by side: a plain list of gymnasium's, or EnvPool's."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import gymnasium as gym
import numpy as np
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

from rollsight.arrays import Array
from rollsight.environments.episode_start import START
from rollsight.environments.make import check_environment, make_environment, observations_of
from rollsight.errors import MissingExtra, RollsightError
from rollsight.streams import sequence
from rollsight.training.compiled.acting import executable
from rollsight.training.restoring import History

Stepper: TypeAlias = Literal["gymnasium", "envpool"]

# EnvPool's environments that were found to be gymnasium's (benchmarks/pools.py, docs/studies/engine.md).
POOLED = (
    "CartPole-v1",
    "Acrobot-v1",
    "LunarLander-v3",
    "FrozenLake-v1",
    "MiniGrid-Empty-8x8-v0",
    "BipedalWalker-v3",
    "highway-v0",
    "highway-fast-v0",
)


class Outcome(NamedTuple):
    """One step of E environments.

    obs:    (E, ...) what the policy sees next: after the reset, where an episode ended and the reset comes at once.
    rewards, terminated, truncated: E each.
    finals: (row, last observation) of episodes that were cut off and have been reset already.
    starts: (row, how its episode began) of resets that were noted (`rollsight.environments.episode_start`).
    """

    obs: Array
    rewards: Any
    terminated: Any
    truncated: Any
    finals: Sequence[tuple[int, Array]] = ()
    starts: Sequence[tuple[int, str | None]] = ()


class Environments(Protocol):
    """What collection needs.

    resets_next_step: an ended episode is followed by a step that only resets: it ignores its action, pays nothing, and
    is not a record. Otherwise environments reset within the step that ends their episode.
    """

    count: int
    action_space: gym.Space[Any]
    resets_next_step: bool

    def reset(self) -> Outcome:
        """Begin; only `obs` and `starts` mean something."""
        ...

    def step(self, actions: Array, only: Array | None = None) -> Outcome:
        """Step every environment, with actions (E, ...) as they take them.

        only: (K,) rising numbers of the environments that are stepped, None for all; actions and outcome have K rows.
        """
        ...

    def starts(self) -> list[str | None]:
        """How the episode under way in each environment started, None where it was not noted."""
        ...

    def replay(self, history: History) -> Array | None:
        """Bring new, reset environments to where a run stood, by the actions that it recorded; what they show then,
        (E, ...), or None where they cannot be brought there."""
        ...

    def close(self) -> None:
        """Give back what the environments hold."""
        ...


def make(
    env: str,
    count: int,
    key: tuple[int, ...],
    stepper: Stepper | None = None,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
) -> Environments:
    """`count` environments whose random streams are keyed by `key`.

    env_kwargs: what `gymnasium.make` gets with the name; EnvPool's environments are other programs and take none.
    stepper: None takes EnvPool, where it is installed, for the environments in `POOLED`, and gymnasium for others.
    Raises `RollsightError` for unknown environments and for those that the compiled engine does not wrap.
    """
    check_environment(env)
    if observations_of(env) == "atari":
        # XLA's convolutions on the processor make a round of it twice as long as Stable-Baselines3's.
        raise RollsightError(
            f"The compiled engine is slower than Stable-Baselines3 on Atari ({env}); use --engine sb3."
        )
    seeds = seeds_of(count, key)
    if stepper is None:
        # Without its XLA interface (Linux), handing over to a pool's thread costs more than a single environment saves.
        faster = count > 1 or sys.platform == "linux"
        pooled = faster and env in POOLED and not env_kwargs and _has_envpool()
        stepper = "envpool" if pooled else "gymnasium"
    if stepper == "envpool":
        return Pool(env, seeds)
    return Copies([make_environment(env, disable_env_checker=True, **(env_kwargs or {})) for _ in seeds], seeds)


def seeds_of(count: int, key: tuple[int, ...]) -> list[int]:
    """Of environments whose random streams are keyed by `key`."""
    return [int(seed % 2**31) for seed in sequence(*key).generate_state(count)]


class Copies:
    """Gymnasium environments in a list, reset within the step that ends their episode, as Stable-Baselines3 does."""

    resets_next_step = False

    def __init__(self, envs: Sequence[gym.Env[Any, Any]], seeds: Sequence[int]) -> None:
        self.count, self._seeds, self._envs = len(envs), seeds, envs
        self.action_space, space = self._envs[0].action_space, self._envs[0].observation_space
        # A number's own type is what the environment's dictionaries know; an array's scalar hashes to the same.
        self._plain = isinstance(self.action_space, gym.spaces.Discrete)
        self._see = channels_first(space)

    def reset(self) -> Outcome:
        begun = [env.reset(seed=seed) for env, seed in zip(self._envs, self._seeds, strict=True)]
        starts = [(i, info.get(START)) for i, (_, info) in enumerate(begun)]
        self._starts = [start for _, start in starts]
        self._obs = np.stack([np.asarray(self._see(obs)) for obs, _ in begun])
        return Outcome(self._obs.copy(), None, None, None, starts=starts)

    def step(self, actions: Array, only: Array | None = None) -> Outcome:
        rewards, ended, cut = [], [], []
        finals, starts = list[tuple[int, Array]](), list[tuple[int, str | None]]()
        taken = actions.tolist() if self._plain else actions
        for row, i in enumerate(range(self.count) if only is None else only.tolist()):
            obs, reward, terminated, truncated, _ = self._envs[i].step(taken[row])
            if terminated or truncated:
                if not terminated:
                    finals.append((row, np.asarray(self._see(obs))))
                obs, info = self._envs[i].reset()
                self._starts[i] = info.get(START)
                starts.append((row, self._starts[i]))
            self._obs[i] = self._see(obs)
            rewards.append(float(reward))
            ended.append(terminated)
            cut.append(truncated)
        return Outcome(self._obs if only is None else self._obs[only], rewards, ended, cut, finals, starts)

    def starts(self) -> list[str | None]:
        return list(self._starts)

    def replay(self, history: History) -> Array | None:
        shown = history.episodes_under_way(self._envs)
        if shown is None:
            return None
        self._obs, self._starts = np.stack([np.asarray(self._see(obs)) for obs in shown]), list(history.starts)
        return self._obs.copy()

    def close(self) -> None:
        for env in self._envs:
            env.close()


class Pool:
    """EnvPool's environments, which reset in the step after the one that ends their episode.

    A single one is stepped once more at once, so that it resets as gymnasium's do and no row is lost.
    """

    def __init__(self, env: str, seeds: Sequence[int]) -> None:
        try:
            import envpool
        except ImportError as error:
            raise MissingExtra(env, "envpool", "fast") from error
        if env not in envpool.list_all_envs():
            raise RollsightError(f"EnvPool has no environment {env!r}; step it with gymnasium.")
        self.count, self.resets_next_step = len(seeds), len(seeds) > 1
        options = {"num_envs": len(seeds), "env_seed": list(seeds), "num_threads": 1}
        with warnings.catch_warnings():  # it states bounds in float64 for spaces in float32
            warnings.filterwarnings("ignore", ".*precision lowered by casting")
            self._pool = envpool.make(env, env_type="gymnasium", **options)
            _ = self._pool.observation_space  # made when first asked for
        space, self.action_space = _spaces(env)
        self._dtype, self._see = space.dtype, channels_first(space)
        self._type = np.int32 if isinstance(self.action_space, gym.spaces.Discrete) else np.float32

    def reset(self) -> Outcome:
        return Outcome(self._shown(self._pool.reset()[0]).astype(self._dtype), None, None, None)

    def step(self, actions: Array, only: Array | None = None) -> Outcome:
        actions = actions.astype(self._type)
        ids = None if only is None else only.astype(np.int32)
        obs, rewards, terminated, truncated, _ = self._pool.step(actions, ids)
        seen, finals = self._shown(obs).astype(self._dtype), list[tuple[int, Array]]()
        if not self.resets_next_step and (terminated[0] or truncated[0]):
            finals = [(0, seen[0])] if truncated[0] else []
            seen = self._shown(self._pool.step(actions)[0]).astype(self._dtype)
        return Outcome(seen, rewards, terminated, truncated, finals)

    def starts(self) -> list[str | None]:
        return [None] * self.count

    def replay(self, history: History) -> Array | None:
        # From its seeds on, as its states cannot be set; it steps some hundred thousand times a second.
        shown = None
        for actions in history.rounds_of_actions():
            for taken in actions:
                shown = self.step(executable(taken, self.action_space)).obs
        return shown

    def close(self) -> None:
        self._pool.close()

    def compiled(self) -> tuple[Any, Callable[[Any, Any], tuple[Any, ...]]]:
        """A handle on the environments, and their step for compiled code: from a handle and actions (E, ...) to the
        next handle, observations, rewards, terminated, truncated. It never steps once more.

        Raises `RuntimeError` where EnvPool has no such interface (it has it on Linux).
        """
        handle, _, _, step = self._pool.xla()

        def stepped(handle: Any, actions: Any) -> tuple[Any, ...]:
            handle, (obs, *others, _) = step(handle, actions.astype(self._type))
            return handle, self._shown(obs), *others

        return handle, stepped

    def _shown(self, obs: Any) -> Any:
        """(E, ...) as the gymnasium environment's wrappers show it: of MiniGrid's dictionary, the image alone."""
        return self._see(obs["image"] if isinstance(obs, dict) else obs)


@cache  # every evaluation makes its environments anew
def _spaces(env: str) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """What the policy sees of a gymnasium environment, before images are transposed, and does in it."""
    example = make_environment(env, disable_env_checker=True)
    example.close()
    return example.observation_space, example.action_space


def channels_first(space: gym.Space[Any]) -> Callable[[Any], Any]:
    """From observations (..., height, width, channels) to the policy's: images with channels first, as the host
    transposes them; others as they are."""
    if isinstance(space, gym.spaces.Box) and is_image_space(space) and not is_image_space_channels_first(space):
        return lambda obs: obs.swapaxes(-1, -2).swapaxes(-2, -3)
    return lambda obs: obs


def _has_envpool() -> bool:
    try:
        import envpool  # noqa: F401
    except ImportError:
        return False
    return True
