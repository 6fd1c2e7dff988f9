"""Wrappers as data: which they are and with which arguments, and made again from that.

Only wrappers that are known to be told whole by their arguments are made again: those of gymnasium that record them,
Stable-Baselines3's, sb3-contrib's, MiniGrid's and our own. Any other (a user's own class, one that carries statistics
from episode to episode) is described with the reason why it cannot be. A run folder can never name other code to load.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs
from stable_baselines3.common.vec_env import VecEnvWrapper

from rollsight.environments.plain_values import NotPlain, decode, encode
from rollsight.errors import RollsightError

Layer = dict[str, Any]
"""`{"wrapper": "module:Class", "arguments": {...}}`, or `"problem"`, in words, where it cannot be made again."""

Wrapper = TypeVar("Wrapper", gym.Wrapper[Any, Any, Any, Any], VecEnvWrapper)

_GYMNASIUM = "gymnasium.wrappers."
TIME_LIMIT = f"{_GYMNASIUM}common:TimeLimit"
_ATARI = "stable_baselines3.common.atari_wrappers:"
_VECTOR = "stable_baselines3.common.vec_env."
_MASKER = "sb3_contrib.common.wrappers.action_masker:ActionMasker"
_MINIGRID = "minigrid.wrappers:"

# They check, log, draw or record, and change nothing that a policy meets. AtariWrapper's parts are layers of their own.
_LEFT_OUT = {
    f"{_GYMNASIUM}common:PassiveEnvChecker",
    *(f"{_GYMNASIUM}rendering:{name}" for name in ("RecordVideo", "HumanRendering", "RenderCollection")),
    f"{_ATARI}AtariWrapper",
    *(f"{_VECTOR}{name}" for name in ("vec_monitor:VecMonitor", "vec_check_nan:VecCheckNan")),
    f"{_VECTOR}vec_video_recorder:VecVideoRecorder",
}
_CARRIES = {
    f"{_GYMNASIUM}stateful_observation:NormalizeObservation",
    f"{_GYMNASIUM}stateful_reward:NormalizeReward",
    *(f"{_MINIGRID}{name}" for name in ("ActionBonus", "PositionBonus", "ReseedWrapper")),
}
# Parameters of the constructor, and the attribute that holds each where it has another name.
_PARAMETERS: Mapping[str, Mapping[str, str]] = {
    TIME_LIMIT: {"max_episode_steps": "_max_episode_steps"},
    "stable_baselines3.common.monitor:Monitor": {},  # logs to a file of its own, and notes returns
    f"{_ATARI}StickyActionEnv": {"action_repeat_probability": "action_repeat_probability"},
    f"{_ATARI}NoopResetEnv": {"noop_max": "noop_max"},
    f"{_ATARI}FireResetEnv": {},
    f"{_ATARI}EpisodicLifeEnv": {},
    f"{_ATARI}MaxAndSkipEnv": {"skip": "_skip"},
    f"{_ATARI}ClipRewardEnv": {},
    f"{_ATARI}WarpFrame": {"width": "width", "height": "height"},
    "sb3_contrib.common.wrappers.time_feature:TimeFeatureWrapper": {
        "max_steps": "_max_steps",
        "test_mode": "_test_mode",
    },
    **{f"{_MINIGRID}{name}": {} for name in ("ImgObsWrapper", "FullyObsWrapper", "SymbolicObsWrapper")},
    **{
        f"{_MINIGRID}{name}": {"tile_size": "tile_size"}
        for name in ("OneHotPartialObsWrapper", "RGBImgObsWrapper", "RGBImgPartialObsWrapper")
    },
    f"{_MINIGRID}ViewSizeWrapper": {"agent_view_size": "agent_view_size"},
    f"{_MINIGRID}FlatObsWrapper": {"maxStrLen": "maxStrLen"},
    f"{_MINIGRID}StochasticActionWrapper": {"prob": "prob", "random_action": "random_action"},
    f"{_MINIGRID}NoDeath": {"no_death_types": "no_death_types", "death_cost": "death_cost"},
    "rollsight.environments.episode_start:EpisodeStart": {},
    "rollsight.environments.make:FreshWorld": {},
    f"{_VECTOR}vec_frame_stack:VecFrameStack": {"n_stack": "stacked_obs.n_stack"},
    f"{_VECTOR}vec_transpose:VecTransposeImage": {"skip": "skip"},
    f"{_VECTOR}vec_extract_dict_obs:VecExtractDictObs": {"key": "key"},
    f"{_VECTOR}vec_normalize:VecNormalize": {
        name: name
        for name in ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")
    },
}


def describe_wrapper(wrapper: Any) -> Layer | None:
    """A gymnasium or vector wrapper as data; None for one that changes nothing that a policy meets."""
    path = path_of(wrapper)
    if path in _LEFT_OUT:
        return None
    if path in _CARRIES:
        return {"wrapper": path, "problem": "it carries what it has seen from episode to episode"}
    if path in _PARAMETERS:
        arguments = {name: _attribute(wrapper, place) for name, place in _PARAMETERS[path].items()}
        if path.endswith(":VecFrameStack"):
            arguments["channels_order"] = _channels_order(wrapper.stacked_obs)
    elif path.startswith(_GYMNASIUM) and isinstance(wrapper, RecordConstructorArgs):
        arguments = {name: value for name, value in wrapper._saved_kwargs.items() if name != "env"}
    elif path == _MASKER and (method := _own_method(wrapper)):
        arguments = {"action_mask_fn": method}
    else:
        return {"wrapper": path, "problem": "it is not a wrapper whose arguments the run can hold"}
    try:
        return {"wrapper": path, "arguments": {name: _encoded(name, value) for name, value in arguments.items()}}
    except NotPlain as problem:
        return {"wrapper": path, "problem": str(problem)}


def make_wrapper(layer: Layer, kind: type[Wrapper], inner: Any) -> Wrapper:
    """The wrapper that a layer describes, around `inner`.

    Raises `RollsightError` where this installation has no such wrapper, or takes other arguments.
    """
    path = layer["wrapper"]
    if not may_be_made(path):
        raise RollsightError(f"{name_of(layer)} is not a wrapper that can be made again")
    module, _, name = path.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)
        if not (inspect.isclass(made) and issubclass(made, kind)):
            raise TypeError(f"{path} is not a {kind.__name__}")
        wrapped: Wrapper = made(inner, **decode(layer["arguments"]))
    except Exception as error:  # whatever a constructor meets in another version, or in another environment
        reason = str(error).partition("\n")[0]
        raise RollsightError(
            f"{name_of(layer)} cannot be made again here ({type(error).__name__}: {reason})"
        ) from error
    return wrapped


def may_be_made(path: str) -> bool:
    """Whether a wrapper of this class can be made again at all."""
    if path in _LEFT_OUT | _CARRIES:
        return False
    return path in _PARAMETERS or path.startswith(_GYMNASIUM) or path == _MASKER


def path_of(wrapper: Any) -> str:
    """`module:Class` of an object's class."""
    return f"{type(wrapper).__module__}:{type(wrapper).__qualname__}"


def name_of(layer: Layer) -> str:
    """The class's own name."""
    return str(layer["wrapper"]).rpartition(":")[2]


def _encoded(name: str, value: Any) -> Any:
    try:
        return encode(value)
    except NotPlain as problem:
        raise NotPlain(f"its argument {name} is {problem}") from None


def _attribute(wrapper: Any, place: str) -> Any:
    for name in place.split("."):
        wrapper = getattr(wrapper, name)
    return wrapper


def _channels_order(stacked: Any) -> Any:
    if hasattr(stacked, "sub_stacked_observations"):
        return {name: _channels_order(part) for name, part in stacked.sub_stacked_observations.items()}
    return "first" if stacked.channels_first else "last"


def _own_method(masker: Any) -> str | None:
    """The name of the wrapped environment's method that gives the masks, where it is one."""
    name = getattr(masker._action_mask_fn, "__name__", "")
    return name if name and getattr(masker.env, name, None) == masker._action_mask_fn else None
