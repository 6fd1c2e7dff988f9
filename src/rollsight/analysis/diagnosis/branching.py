"""Put a real environment into a record's state: set the state, copy it, or replay the record's episode up to it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from rollsight.arrays import Array
from rollsight.environments.states import EXACT, BranchPoint, Env, can_be_set, name_of, replay, set_state
from rollsight.errors import RollsightError

Method: TypeAlias = Literal["set", "copy", "replay"]

EXPLAINED: Mapping[Method, str] = {
    "set": "the environment's state was set to the record's",
    "copy": "the episode was replayed to the record and the environment copied",
    "replay": "the episode was replayed to the record for every branch",
}
_CHECKED = 10  # records whose episodes are replayed to see that this is the environment of the run
_PROBE_STEPS = 16  # steps for which a copy must do what its original does


class Brancher:
    """Makes environments that stand in a record's state and go on with random streams of their own.

    make: a new environment; method: of `choose_method`; see: an observation as the policy sees it, flat.
    tolerance: of `replay`.
    """

    def __init__(
        self, make: Callable[[], Env], method: Method, see: Callable[[Any], Array], tolerance: float = EXACT
    ) -> None:
        self._make, self._see, self._tolerance = make, see, tolerance
        self.method = method
        self._pool: list[Env] = []

    def branch(self, point: BranchPoint, seeds: Sequence[np.random.SeedSequence]) -> list[Env]:
        """One environment per seed. Those of the last call must not be used any more.

        Raises `RollsightError` where a replay does not arrive at the record's observation.
        """
        if self.method == "copy":
            original = self._environments(1)[0]
            replay(original, point, self._see, self._tolerance)
            frozen = pickle.dumps(original)
            environments = [pickle.loads(frozen) for _ in seeds]
        else:
            environments = self._environments(len(seeds))
            for env in environments:
                if self.method == "set":
                    set_state(env, point)
                else:
                    replay(env, point, self._see, self._tolerance)
        for env, seed in zip(environments, seeds, strict=True):
            env.unwrapped.np_random = np.random.Generator(np.random.PCG64(seed))
        return environments

    def _environments(self, count: int) -> list[Env]:
        while len(self._pool) < count:
            env = self._make()
            if self.method == "set":
                env.reset(seed=0)  # its wrappers refuse to step before
            self._pool.append(env)
        return self._pool[:count]


def choose_method(
    make: Callable[[], Env], see: Callable[[Any], Array], points: Sequence[BranchPoint], tolerance: float = EXACT
) -> Method:
    """How these records can be branched, tried out on some of them. Cheapest first: set, copy, replay.

    Raises `RollsightError` where the environment cannot be branched, and where it is not the one of the run.
    """
    env = make()
    replayable = [point for point in points if point.replayable]
    for point in replayable[:_CHECKED]:
        replay(env, point, see, tolerance)
    if can_be_set(env):
        return "set"
    if not replayable:
        raise RollsightError(
            f"{name_of(env)} cannot be branched: its state cannot be set, and the run does not store how the episodes "
            "of these records started; wrap the environments in EpisodeStart (from "
            "rollsight.environments.episode_start) to train, as `rollsight train --engine sb3` does."
        )
    return "copy" if _can_be_copied(env, see) else "replay"


def _can_be_copied(env: Env, see: Callable[[Any], Array]) -> bool:
    """Whether a pickled copy goes on as its original does. Some environments pickle no more than their arguments."""
    try:
        copy = pickle.loads(pickle.dumps(env))
    except Exception:  # whatever an environment's objects raise when they cannot be pickled
        return False
    space = env.action_space
    space.seed(0)
    try:
        for _ in range(_PROBE_STEPS):
            action = space.sample()
            one, other = env.step(action), copy.step(action)
            if not np.array_equal(see(one[0]), see(other[0])) or one[1:4] != other[1:4]:
                return False
            if one[2] or one[3]:
                break
    except Exception:  # a copy without its state fails in whatever way it comes across that
        return False
    return True
