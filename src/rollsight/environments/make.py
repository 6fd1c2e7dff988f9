"""Environments by name, wrapped as our own training runs see them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import gymnasium as gym
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack

from rollsight.environments.episode_start import EpisodeStart
from rollsight.environments.vector import seen_alone
from rollsight.errors import MissingExtra, RollsightError

Observations: TypeAlias = Literal["vector", "minigrid", "atari"]

FRAMES = 4  # of Atari, stacked
STACKED = {
    "wrapper": "stable_baselines3.common.vec_env.vec_frame_stack:VecFrameStack",
    "arguments": {"n_stack": FRAMES, "channels_order": None},
}

# Environments that another package registers, by the start of their names.
_PACKAGES = {"MiniGrid-": "minigrid", "BabyAI-": "minigrid", "highway-": "highway_env", "ALE/": "ale_py"}


def observations_of(env: str) -> Observations:
    """What an environment of this name shows, which its wrappers and the policy's network go by."""
    if env.startswith("MiniGrid-"):
        return "minigrid"
    return "atari" if env.startswith("ALE/") or "NoFrameskip" in env else "vector"


def check_environment(env: str) -> None:
    """Raise `RollsightError` for an unknown name, naming near ones, and where the environment's package is missing."""
    _register(env)
    try:
        gym.spec(env)
    except gym.error.Error as error:
        near = difflib.get_close_matches(env, gym.registry, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "see gymnasium.envs.registry for the names."
        raise RollsightError(f"There is no environment {env!r}; {hint}") from error


def make_environments(
    env: str, count: int, seed: int | None = None, keywords: Mapping[str, Any] | None = None
) -> VecEnv:
    """`count` copies of the environment in one process, each noting how its episodes start.

    keywords: for `gymnasium.make`. Raises `RollsightError` as `check_environment` does, and where the environment
    cannot be made.
    """
    check_environment(env)
    with _said(env):
        vectorised = make_vec_env(
            env,
            n_envs=count,
            seed=seed,
            wrapper_class=wrapper_of(env),
            env_kwargs=None if keywords is None else dict(keywords),
            vec_env_cls=DummyVecEnv,
        )
    return VecFrameStack(vectorised, FRAMES) if observations_of(env) == "atari" else vectorised


def make_environment(env: str, **keywords: Any) -> gym.Env[Any, Any]:
    """One environment as the training runs see it; keywords go to `gymnasium.make`.

    Raises `RollsightError` as `make_environments` does.
    """
    check_environment(env)
    with _said(env):
        made = wrapper_of(env)(gym.make(env, **keywords))
    return seen_alone(made, [STACKED]) if observations_of(env) == "atari" else made


@contextmanager
def _said(env: str) -> Iterator[None]:
    """Errors of making it as sentences."""
    try:
        yield
    except gym.error.DependencyNotInstalled as error:
        raise RollsightError(
            f"{env} needs a package that is not installed ({error}): pip install 'rollsight[envs]'"
        ) from error
    except (gym.error.Error, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise RollsightError(f"The environment {env!r} cannot be made: {reason}") from error


def _register(env: str) -> None:
    package = next((package for start, package in _PACKAGES.items() if env.startswith(start)), None)
    if package is None:
        return
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(env, package, "envs") from error
    if package != "minigrid":
        gym.register_envs(module)


def wrapper_of(env: str) -> Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]:
    """What our training runs put around an environment of this name."""
    observations = observations_of(env)
    if observations == "minigrid":
        return _wrap_minigrid
    if observations == "atari":
        return _wrap_atari
    return _wrap_walker if env.startswith("BipedalWalker-") else EpisodeStart


def _wrap_minigrid(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    from minigrid.wrappers import ImgObsWrapper

    return EpisodeStart(ImgObsWrapper(env))  # type: ignore[no-untyped-call]


def _wrap_atari(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise MissingExtra("Atari", "opencv-python-headless", "envs") from error
    return EpisodeStart(AtariWrapper(env))


def _wrap_walker(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return EpisodeStart(FreshWorld(env))


class FreshWorld(gym.Wrapper[Any, Any, Any, Any]):
    """A new Box2D world for every episode, as LunarLander makes one itself: the old one keeps traces of the episodes
    before (gymnasium issue 728), so that none could be repeated."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        from Box2D import b2World

        walker: Any = self.unwrapped
        walker._destroy()
        walker.world = b2World()
        return self.env.reset(seed=seed, options=options)
