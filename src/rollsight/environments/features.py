"""What the numbers of an observation and the actions are called, with units, from the environments' documentation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """One number of an observation or of a continuous action.

    name: in plain words.
    unit: empty where there is none; "scaled" where the environment divides by a scale of its own.
    """

    name: str
    unit: str = ""


def observation_features(env: str, size: int) -> tuple[Feature, ...] | None:
    """The features of a flat observation of `size` numbers of the environment of this name; None where they are not
    known, or their number is another one (another observation was chosen for it)."""
    name = _without_version(env)
    if name in _HIGHWAY:
        features = _HIGHWAY[name]
        vehicles = ("ego vehicle", *(f"vehicle {number}" for number in range(1, size // len(features))))
        found = tuple(Feature(f"{vehicle} {one.name}", one.unit) for vehicle in vehicles for one in features)
    else:
        found = _OBSERVED.get(name, ())
    return found if len(found) == size else None


def action_names(env: str) -> tuple[str, ...] | None:
    """What the discrete actions are called, in order; None where that is not known or actions are numbers."""
    name = _without_version(env)
    if name.startswith(("MiniGrid", "BabyAI")):
        return ("turn left", "turn right", "move forward", "pick up", "drop", "toggle", "done")
    return _NAMED.get(name)


def action_features(env: str, size: int) -> tuple[Feature, ...] | None:
    """The numbers of a continuous action of `size` numbers; None where they are not known."""
    found = _ACTIONS.get(_without_version(env), ())
    return found if len(found) == size else None


def _without_version(env: str) -> str:
    name, dash, version = env.rpartition("-v")
    return name if dash and version.isdigit() else env


def _features(*pairs: str) -> tuple[Feature, ...]:
    """From texts "name [unit]"."""
    split = (one.partition(" [") for one in pairs)
    return tuple(Feature(name, unit.rstrip("]")) for name, _, unit in split)


_CAR = _features("position [m]", "velocity [m/step]")
_WALKER = _features(
    *("hull angle [rad]", "hull angular velocity [scaled]", "horizontal velocity [scaled]"),
    "vertical velocity [scaled]",
    *(
        f"{leg} {part}"
        for leg in ("leg 1", "leg 2")
        for part in (
            *("hip angle [rad]", "hip speed [scaled]", "knee angle + 1 [rad]", "knee speed [scaled]"),
            "ground contact",
        )
    ),
    *(f"lidar {number} [share of its range]" for number in range(1, 11)),
)
_OBSERVED = {
    "CartPole": _features(
        "cart position [m]", "cart velocity [m/s]", "pole angle [rad]", "pole angular velocity [rad/s]"
    ),
    "Acrobot": _features(
        *("cos of angle 1", "sin of angle 1", "cos of angle 2", "sin of angle 2"),
        *("angular velocity 1 [rad/s]", "angular velocity 2 [rad/s]"),
    ),
    "Pendulum": _features("cos of angle", "sin of angle", "angular velocity [rad/s]"),
    "MountainCar": _CAR,
    "MountainCarContinuous": _CAR,
    "LunarLander": _features(
        *("horizontal position [scaled]", "vertical position [scaled]", "horizontal velocity [scaled]"),
        *("vertical velocity [scaled]", "angle [rad]", "angular velocity [scaled]"),
        *("left leg contact", "right leg contact"),
    ),
    "BipedalWalker": _WALKER,
    "BipedalWalkerHardcore": _WALKER,
}
_KINEMATICS = _features("presence", "x [scaled]", "y [scaled]", "velocity x [scaled]", "velocity y [scaled]")
_HEADED = (*_KINEMATICS, *_features("cos of heading", "sin of heading"))
_HIGHWAY = {
    **dict.fromkeys(("highway", "highway-fast", "merge", "roundabout"), _KINEMATICS),
    "intersection": _HEADED,
    "exit": _HEADED,
}
_META = ("lane left", "idle", "lane right", "faster", "slower")
_NAMED = {
    "CartPole": ("push left", "push right"),
    "Acrobot": ("torque -1", "no torque", "torque +1"),
    "MountainCar": ("accelerate left", "do not accelerate", "accelerate right"),
    "FrozenLake": ("left", "down", "right", "up"),
    "CliffWalking": ("up", "right", "down", "left"),
    "CliffWalkingSlippery": ("up", "right", "down", "left"),
    "Taxi": ("south", "north", "east", "west", "pick up", "drop off"),
    "Blackjack": ("stick", "hit"),
    "LunarLander": ("do nothing", "fire left engine", "fire main engine", "fire right engine"),
    **dict.fromkeys(("highway", "highway-fast", "merge", "roundabout", "exit", "two-way", "u-turn"), _META),
    "intersection": ("slower", "idle", "faster"),
}
_JOINTS = _features("hip 1 [torque]", "knee 1 [torque]", "hip 2 [torque]", "knee 2 [torque]")
_ACTIONS = {
    "Pendulum": _features("torque [N m]"),
    "MountainCarContinuous": _features("force [scaled]"),
    "LunarLander": _features("main engine [throttle]", "lateral engines [throttle]"),
    "LunarLanderContinuous": _features("main engine [throttle]", "lateral engines [throttle]"),
    "BipedalWalker": _JOINTS,
    "BipedalWalkerHardcore": _JOINTS,
    "CarRacing": _features("steering", "gas", "brake"),
}
