"""Environments by name, wrapped and ready for Stable-Baselines3."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack

from rollsight.adapters.gymnasium import EpisodeStart
from rollsight.errors import RollsightError
from rollsight.runs import Run

Observations: TypeAlias = Literal["vector", "minigrid", "atari"]

_FRAMES = 4  # of Atari, stacked
_EXTRA = "pip install 'rollsight[envs]'"

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


def environment_of(run: Run, purpose: str) -> str:
    """The name of the environment that a run was trained in.

    purpose: what cannot be done without it, for the error. Raises `RollsightError` where the run names none, or wrapped
    it in something whose state the run does not hold.
    """
    env = run.metadata.get("env")
    if not isinstance(env, str):
        raise RollsightError(f"{run.path} does not say which environment it was trained in, so {purpose}")
    if "VecNormalize" in (run.metadata.get("env_wrappers") or []):
        raise RollsightError(
            f"{run.path} was trained inside VecNormalize, whose running statistics the run does not hold, so {purpose}"
        )
    return env


def make_environments(
    env: str, count: int, seed: int | None = None, *, env_kwargs: Mapping[str, Any] | None = None
) -> VecEnv:
    """`count` copies of the environment in one process, each noting how its episodes start.

    env_kwargs: what `gymnasium.make` gets with the name.

    Raises `RollsightError` as `check_environment` does, and where the environment cannot be made.
    """
    check_environment(env)
    try:
        vectorised = make_vec_env(
            env,
            n_envs=count,
            seed=seed,
            wrapper_class=_wrapper(env),
            vec_env_cls=DummyVecEnv,
            env_kwargs=dict(env_kwargs or {}),
        )
    except gym.error.DependencyNotInstalled as error:
        raise RollsightError(f"{env} needs a package that is not installed ({error}): {_EXTRA}") from error
    except gym.error.Error as error:
        raise RollsightError(f"The environment {env!r} cannot be made: {str(error).splitlines()[0]}") from error
    return VecFrameStack(vectorised, _FRAMES) if observations_of(env) == "atari" else vectorised


def make_environment(env: str, **keywords: Any) -> gym.Env[Any, Any]:
    """One environment as the training runs see it; keywords go to `gymnasium.make`.

    Raises `RollsightError` as `make_environments` does.
    """
    check_environment(env)
    try:
        made = _wrapper(env)(gym.make(env, **keywords))
    except gym.error.DependencyNotInstalled as error:
        raise RollsightError(f"{env} needs a package that is not installed ({error}): {_EXTRA}") from error
    except gym.error.Error as error:
        raise RollsightError(f"The environment {env!r} cannot be made: {str(error).splitlines()[0]}") from error
    return _stack_frames(made) if observations_of(env) == "atari" else made


def _register(env: str) -> None:
    package = next((package for start, package in _PACKAGES.items() if env.startswith(start)), None)
    if package is None:
        return
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise RollsightError(f"{env} needs the package {package}, which is not installed: {_EXTRA}") from error
    if package != "minigrid":
        gym.register_envs(module)


def _wrapper(env: str) -> Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]:
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
        raise RollsightError(
            f"Atari's frames need the package opencv-python-headless, which is not installed: {_EXTRA}"
        ) from error
    return EpisodeStart(AtariWrapper(env))


def _stack_frames(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """What `VecFrameStack` does, for one environment."""
    stacked = gym.wrappers.FrameStackObservation(env, _FRAMES, padding_type="zero")
    height, width, _ = env.observation_space.shape or ()
    space = gym.spaces.Box(0, 255, (height, width, _FRAMES), np.uint8)
    return gym.wrappers.TransformObservation(stacked, lambda frames: np.concatenate(list(frames), axis=-1), space)


def _wrap_walker(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return EpisodeStart(_FreshWorld(env))


class _FreshWorld(gym.Wrapper[Any, Any, Any, Any]):
    """A new Box2D world for every episode, as LunarLander makes one itself: the old one keeps traces of the episodes
    before (gymnasium issue 728), so that none could be repeated."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        from Box2D import b2World

        walker: Any = self.unwrapped
        walker._destroy()
        walker.world = b2World()
        return self.env.reset(seed=seed, options=options)
