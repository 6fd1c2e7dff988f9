"""What a run folder says about the model that wrote it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from rollsight.environments.describe import Described, describe_environments, time_limit
from rollsight.environments.trained import STATISTICS
from rollsight.environments.vector import statistics_of

_SETTINGS = (
    "n_steps",
    "batch_size",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "ent_coef",
    "vf_coef",
    "max_grad_norm",
    "target_kl",
    "normalize_advantage",
    "use_sde",
)


def describe(model: OnPolicyAlgorithm, **more: Any) -> dict[str, Any]:
    """Algorithm, environment, seed and hyper-parameters, as plain values."""
    clip = getattr(model, "clip_range", None)
    further = {"clip_range": float(clip(1.0))} if callable(clip) else {}
    return describe_model(model, _SETTINGS, further, optimizer=type(model.policy.optimizer).__name__, **more)


def describe_model(
    model: BaseAlgorithm, names: Sequence[str], further: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """The same of any algorithm. names: of its settings, where it has them; further: settings; more: other entries."""
    env = model.get_env()
    assert env is not None
    settings = {name: getattr(model, name) for name in names if hasattr(model, name)}
    return {
        "host": f"stable-baselines3 {stable_baselines3.__version__}",
        "algo": type(model).__name__.lower(),
        "policy": type(model.policy).__name__,
        **describe_env(env),
        "n_envs": env.num_envs,
        "observation_space": str(model.observation_space),
        "action_space": str(model.action_space),
        "parameters": {n: "x".join(map(str, p.shape)) or "1" for n, p in model.policy.named_parameters()},
        "timesteps_before": model.num_timesteps,
        "seed": model.seed,
        "learning_rate": float(model.lr_schedule(1.0)),
        "settings": {**settings, **further},
        **{name: value if isinstance(value, (list, int, type(None))) else str(value) for name, value in more.items()},
    }


def describe_env(env: VecEnv) -> dict[str, Any]:
    """How the environments were made, and what their rewards and the columns made of them are measured in."""
    described = _described(env)
    return {
        "env": described.pop("id"),
        "env_kwargs": described.pop("kwargs", None),
        "max_episode_steps": time_limit(described),
        "env_wrappers": _wrappers(env),
        "environment": described,
        "units": units(env),
    }


def _wrappers(env: VecEnv) -> list[str]:
    """Class names of the wrappers around the vectorised environment, the outermost first."""
    names = []
    while isinstance(env, VecEnvWrapper):
        names.append(type(env).__name__)
        env = env.venv
    return names


def units(env: VecEnv) -> dict[str, str]:
    """What the columns of records, and the returns of a round's summary, are measured in."""
    own = "the environment's reward"
    scaled = own
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize) and env.norm_reward:
            scaled = f"{own} as VecNormalize scales it: over the running standard deviation of its discounted sum"
        env = env.venv
    return {
        **dict.fromkeys(("reward", "episode_return", "return_mean"), own),
        **dict.fromkeys(("value", "advantage", "return"), scaled),
    }


def statistics_entry(env: VecEnv | None) -> dict[str, str]:
    """The entry of a round's summary that says what each `VecNormalize` has seen by now; none where there is none."""
    found = [] if env is None else statistics_of(env)
    return {STATISTICS: json.dumps(found)} if found else {}


def _described(env: VecEnv) -> Described:
    try:
        return describe_environments(env)
    except Exception as error:  # of an environment's own code; training goes on, and analyses refuse to play
        warnings.warn(
            f"the run will not say how its environment was made: {type(error).__name__}: {error}", stacklevel=2
        )
        return {"id": None, "problem": "it could not be described", "vec_wrappers": []}
