"""The environment that a run was trained in, made again: exactly, or not at all."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from rollsight.environments.describe import describe_environment, entry_point, time_limit
from rollsight.environments.make import STACKED, check_environment, observations_of, wrapper_of
from rollsight.environments.plain_values import decode
from rollsight.environments.vector import Statistics, seen_alone, wrap_vector
from rollsight.environments.wrappers import Layer, make_wrapper, may_be_made, name_of
from rollsight.errors import RollsightError
from rollsight.runs import Run

MakeEnv: TypeAlias = Callable[[], gym.Env[Any, Any]]
"""A function without arguments that returns a new gymnasium environment, wrapped as in training."""

STATISTICS = "vec_normalize"  # the column of a round's summary that holds what `VecNormalize` had seen by then
_NORMALIZE = "stable_baselines3.common.vec_env.vec_normalize:VecNormalize"
_INSTEAD = "name a function that makes it (--env MODULE:FUNCTION, in Python make_env=)"


@dataclass(frozen=True)
class TrainedEnvironment:
    """How to make a run's environment again, in plain values for worker processes.

    name: its id, or what made it.
    base: `id`, `kwargs`, `entry_point` and `wrappers`; in runs of earlier versions no more than `id`, `kwargs` and the
        time `limit`. None where `make` is given.
    vector: the vector wrappers, the innermost first.
    statistics: of each `VecNormalize` among them.
    make: the user's function that makes the environment; None where `base` says it.
    """

    name: str
    base: Mapping[str, Any] | None
    vector: tuple[Layer, ...] = ()
    statistics: Statistics = ()
    make: CloudpickleWrapper | None = field(default=None, repr=False)

    @property
    def identity(self) -> str:
        """Text that is equal where the environment is: what was played in another must not be taken for this one's."""
        if self.make is not None:
            made = self.make.var
            return f"{getattr(made, '__module__', '')}:{getattr(made, '__qualname__', type(made).__qualname__)}"
        content = json.dumps([self.base, self.vector], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def one(self, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """A new environment inside its gymnasium wrappers. Raises `RollsightError` where it cannot be made."""
        if self.make is not None:
            return _made_by(self.make.var)
        assert self.base is not None
        if "wrappers" in self.base:
            return _made_again(self.base, render_mode)
        return _made_by_name(self.base, render_mode)

    def alone(self, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """A new environment as the policy saw it, through the vector wrappers too. Its rewards are its own."""
        return seen_alone(self.one(render_mode), self.vector, self.statistics)

    def vectorised(self, count: int) -> VecEnv:
        """`count` of them in one process inside the vector wrappers; `VecNormalize` learns nothing more."""
        ones = [self.one() for _ in range(count)]
        if len({id(one.unwrapped) for one in ones}) < count:
            raise RollsightError(f"{self.name} returned one environment twice: it must make a new one in each call")
        return wrap_vector(DummyVecEnv([_returning(one) for one in ones]), self.vector, self.statistics)


def trained_environment(
    run: Run, purpose: str, *, round: int | None = None, make_env: MakeEnv | None = None
) -> TrainedEnvironment:
    """The environment that a run was trained in.

    purpose: what cannot be done without it, for the error. round: the one whose `VecNormalize` statistics are played
    with. make_env: makes the environment instead, without its vector wrappers, which are still the run's.

    Raises `RollsightError` where the run does not say how its environment was made, or a part of it cannot be made
    again; the message names the part.
    """
    env, described = run.metadata.get("env"), run.metadata.get("environment")

    def refuse(why: str, instead: bool = True) -> RollsightError:
        return RollsightError(f"{run.path} {why}, so {purpose}" + (f": {_INSTEAD}" if instead else ""))

    if described is not None and not _is_described(described):
        raise refuse("has an entry `environment` in its run.json that is damaged", False)
    vector = _vector_of_earlier_version(run, refuse) if described is None else tuple(described["vec_wrappers"])
    if (problem := _first_problem(vector)) is not None:
        raise refuse(problem, False)
    statistics: Statistics = ()
    if count := sum(layer["wrapper"] == _NORMALIZE for layer in vector):
        statistics = _statistics(run, round)
        if len(statistics) != count:
            raise refuse("was trained inside VecNormalize, whose running statistics the run does not hold", False)
    if make_env is not None:
        name = str(env or getattr(make_env, "__qualname__", "make_env"))
        return _tried(TrainedEnvironment(name, None, vector, statistics, make=CloudpickleWrapper(make_env)), refuse)
    problem = None if described is None else described.get("problem")
    if not isinstance(env, str):
        raise refuse("does not say which environment it was trained in" + (f" ({problem})" if problem else ""))
    if problem is not None:
        raise refuse(f"was trained in {env}, which cannot be made again ({problem})")
    keywords, limit = run.metadata.get("env_kwargs") or {}, run.metadata.get("max_episode_steps")
    if not isinstance(keywords, dict):
        raise refuse(f"has env_kwargs={keywords!r} in its run.json, which are not keywords")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise refuse(f"has max_episode_steps={limit!r} in its run.json, which is not a number of steps")
    base = {"id": env, "kwargs": keywords, **({"limit": limit} if described is None else described)}
    if described is not None:
        if (problem := _first_problem(described["wrappers"])) is not None:
            raise refuse(problem)
        if limit != (told := time_limit(described)):
            raise refuse(f"has max_episode_steps={limit} in its run.json, and its wrappers say {told}")
    return _tried(TrainedEnvironment(env, base, vector, statistics), refuse, f"; or {_INSTEAD}")


def _first_problem(layers: Sequence[Layer]) -> str | None:
    for layer in layers:
        if "problem" in layer or not may_be_made(layer["wrapper"]):
            why = layer.get("problem", "it is not a wrapper that can be made again")
            return f"was trained inside {name_of(layer)}, which cannot be made again ({why})"
    return None


def _tried(trained: TrainedEnvironment, refuse: Callable[..., RollsightError], instead: str = "") -> TrainedEnvironment:
    """The same, after one was made: complains now, and not in a worker process."""
    try:
        trained.alone().close()
    except RollsightError as error:
        raise RollsightError(f"{error}{instead}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise refuse("holds statistics of VecNormalize that are damaged", False) from error
    return trained


def function_named(text: str) -> MakeEnv:
    """The function that `MODULE:FUNCTION` names. Raises `RollsightError` where there is none."""
    module, colon, name = text.partition(":")
    if not (colon and module and name):
        raise RollsightError(f"--env {text} names no function: write MODULE:FUNCTION, such as my_envs:make")
    if "" not in sys.path and os.getcwd() not in sys.path:  # an installed command does not look into its folder
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise RollsightError(f"--env {text}: the module {module} cannot be imported ({error})") from error
    for part in name.split("."):
        found = getattr(found, part, None)  # type: ignore[assignment]
    if not callable(found):
        raise RollsightError(f"--env {text}: the module {module} has no function {name}")
    function: MakeEnv = found
    return function


def _returning(env: gym.Env[Any, Any]) -> MakeEnv:
    return lambda: env


def _made_by(make: MakeEnv) -> gym.Env[Any, Any]:
    name = getattr(make, "__qualname__", "make_env")
    try:
        made = make()
    except Exception as error:  # the user's own code
        reason = str(error).partition("\n")[0]
        raise RollsightError(
            f"{name}() raised {type(error).__name__} ({reason}): it must return an environment"
        ) from error
    if not isinstance(made, gym.Env):
        raise RollsightError(f"{name}() returned a {type(made).__name__}: it must return one gymnasium environment")
    return made


def _made_again(base: Mapping[str, Any], render_mode: str | None) -> gym.Env[Any, Any]:
    name = base["id"]
    check_environment(name)
    spec = copy.deepcopy(gym.spec(name))
    if entry_point(spec) != base["entry_point"]:
        raise RollsightError(f"{name} is {entry_point(spec)} here, and the run was trained in {base['entry_point']}")
    # The environment alone: everything around it, the time limit too, is in the list, in the order it had.
    spec.max_episode_steps, spec.order_enforce, spec.additional_wrappers = None, False, ()
    try:
        spec.kwargs = _keywords(decode(base["kwargs"]), render_mode)
        env: gym.Env[Any, Any] = gym.make(spec, disable_env_checker=True)
    except Exception as error:  # keywords of another version, a missing package: whatever its constructor meets
        reason = str(error).partition("\n")[0]
        raise RollsightError(f"{name} cannot be made again ({type(error).__name__}: {reason})") from error
    layers, inside = base["wrappers"], describe_environment(env)["wrappers"]  # some come wrapped
    if layers[: len(inside)] != inside:
        raise RollsightError(f"{name} comes inside {', '.join(map(name_of, inside))} here, and did not in training")
    for layer in layers[len(inside) :]:
        env = make_wrapper(layer, gym.Wrapper, env)
    return env


def _made_by_name(base: Mapping[str, Any], render_mode: str | None) -> gym.Env[Any, Any]:
    """As our own training runs make it, of which earlier versions wrote no more."""
    name = base["id"]
    check_environment(name)
    keywords = _keywords(dict(base["kwargs"]), render_mode)
    try:
        made = gym.make(name, max_episode_steps=base["limit"], disable_env_checker=True, **keywords)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise RollsightError(f"{name} cannot be made again ({type(error).__name__}: {reason})") from error
    return wrapper_of(name)(Monitor(made))


def _keywords(keywords: dict[str, Any], render_mode: str | None) -> dict[str, Any]:
    if keywords.get("render_mode") == "human":  # a window for each would open
        keywords.pop("render_mode")
    return keywords if render_mode is None else {**keywords, "render_mode": render_mode}


def _vector_of_earlier_version(run: Run, refuse: Callable[..., RollsightError]) -> tuple[Layer, ...]:
    """The vector wrappers of a run that has only their names, where these tell all."""
    names, env = run.metadata.get("env_wrappers") or [], run.metadata.get("env")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise refuse(f"has env_wrappers={names!r} in its run.json, which is not a list of names", False)
    if "VecNormalize" in names:
        raise refuse("was trained inside VecNormalize, whose running statistics the run does not hold", False)
    atari = isinstance(env, str) and observations_of(env) == "atari"
    harmless = {"VecTransposeImage", "VecMonitor", "VecCheckNan", *(["VecFrameStack"] if atari else [])}
    if unknown := [name for name in names if name not in harmless]:
        raise refuse(f"was trained inside {unknown[0]}, whose arguments the run does not hold", False)
    return (STACKED,) if atari else ()


def _is_described(described: Any) -> bool:
    """Whether it is what `describe_environments` writes, as far as shapes go."""

    def layers(value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(layer, dict)
            and isinstance(layer.get("wrapper"), str)
            and ("problem" in layer or isinstance(layer.get("arguments"), dict))
            for layer in value
        )

    if not isinstance(described, dict) or not layers(described.get("vec_wrappers")):
        return False
    if "problem" in described:
        return True
    return isinstance(described.get("entry_point"), str) and layers(described.get("wrappers"))


def _statistics(run: Run, round: int | None) -> Statistics:
    try:
        found = run.sql(f"select {STATISTICS} from rounds where round = {round}").fetchall() if round else []
    except RollsightError:  # no such column
        return ()
    texts = [text for (text,) in found if text is not None]
    try:
        known = json.loads(texts[0]) if texts else ()
    except ValueError:
        return ()
    return known if isinstance(known, list) else ()
