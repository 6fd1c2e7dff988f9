"""How the environments of a training were made, as plain values for the run folder."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from rollsight.environments.plain_values import NotPlain, encode
from rollsight.environments.wrappers import TIME_LIMIT, Layer, describe_wrapper, path_of

Described = dict[str, Any]
"""`id`, `entry_point`, `kwargs` of `gymnasium.make`, `wrappers` and `vec_wrappers` around it, each the innermost first;
`problem`, in words, where the environment itself cannot be made again."""

_NOTE = "rollsight_described"
_UNKNOWN = '{"id": null, "problem": "it could not be looked at in its process"}'


def describe_environments(venv: VecEnv) -> Described:
    """The environments, which are described as one where they were made alike."""
    around: list[Layer] = []
    while isinstance(venv, VecEnvWrapper):
        if (layer := describe_wrapper(venv)) is not None:
            around.append(layer)
        venv = venv.venv
    each = _each(venv)
    described: Described = dict(each[0]) if each else {"id": _id(venv), "problem": f"it was in a {type(venv).__name__}"}
    if any(one != each[0] for one in each):
        described["problem"] = "its environments differ from each other"
    return {**described, "vec_wrappers": around[::-1]}


def describe_environment(env: gym.Env[Any, Any]) -> Described:
    """One environment."""
    wrappers: list[Layer] = []
    while isinstance(env, gym.Wrapper):
        if (layer := describe_wrapper(env)) is not None:
            wrappers.append(layer)
        env = env.env
    described: Described = {"id": None, "wrappers": wrappers[::-1]}
    if env.spec is None:
        return {**described, "problem": f"{path_of(env).replace(':', '.')} is not registered with gymnasium"}
    described |= {"id": env.spec.id, "entry_point": entry_point(env.spec)}
    try:
        described["kwargs"] = {name: encode(value) for name, value in env.spec.kwargs.items()}
    except NotPlain as problem:
        described["problem"] = f"its keywords hold {problem}"
    return described


def entry_point(spec: Any) -> str:
    """Where a registered environment comes from, as text."""
    made = spec.entry_point
    return f"{made.__module__}:{made.__qualname__}" if callable(made) and hasattr(made, "__qualname__") else str(made)


def time_limit(described: Described) -> int | None:
    """The smallest limit of an episode's steps that its wrappers set."""
    limits = [
        layer["arguments"]["max_episode_steps"]
        for layer in described.get("wrappers", ())
        if layer["wrapper"] == TIME_LIMIT
    ]
    return min(limits, default=None)


def _each(venv: VecEnv) -> list[Described]:
    if isinstance(venv, DummyVecEnv):
        return [describe_environment(env) for env in venv.envs]
    if isinstance(venv, SubprocVecEnv):
        # Their `spec` cannot be asked for: what cannot be pickled in it ends the process that holds the environment.
        venv.env_is_wrapped(_Noted)  # type: ignore[arg-type]
        noted = venv.get_attr(_NOTE) if venv.has_attr(_NOTE) else [_UNKNOWN] * venv.num_envs
        return [json.loads(text) for text in noted]
    return []


def _id(venv: VecEnv) -> str | None:
    spec = venv.get_attr("spec")[0] if venv.has_attr("spec") else None
    return getattr(spec, "id", None)


class _Noting(type):
    """`isinstance(env, _Noted)` notes the description at the environment: the one question of a `SubprocVecEnv` that
    lets code of ours look at the environments in their processes."""

    def __instancecheck__(cls, env: Any) -> bool:
        try:
            setattr(env, _NOTE, json.dumps(describe_environment(env)))
        except Exception:  # in a process of the training: it must not end because of this
            return True
        return True


class _Noted(metaclass=_Noting):
    pass
