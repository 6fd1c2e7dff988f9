"""The planted faults: what is planted where, how strongly, and which finding is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from rollsight.studies import wrappers
from rollsight.studies.doctor import hosts

ODD = 2  # the environment that differs, where one does
UNDONE = 9  # the round whose update is undone
Place = Literal["run", "environment", "feature", "round"]


@dataclass(frozen=True)
class Plant:
    """What is changed. A plain run changes nothing.

    wrap: an environment and its number -> the changed environment.
    all_environments: the vector of them -> the changed one.
    settings: changed settings of `RunSettings`.
    model: changes the new model.
    callback: makes one that comes before Rollsight's.
    """

    wrap: Callable[[gym.Env[Any, Any], int], gym.Env[Any, Any]] = lambda env, number: env
    all_environments: Callable[[VecEnv], VecEnv] = lambda venv: venv
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Callable[[PPO], None] = lambda model: None
    callback: Callable[[], BaseCallback] | None = None


@dataclass(frozen=True)
class PlantedFault:
    """A fault.

    right: the checks of which any names the cause, of the doctor and of the baseline.
    envs: where it is planted.
    strengths: the strongest first.
    plant: by strength and seed.
    place: what the finding must point to.
    """

    right: tuple[str, ...]
    envs: tuple[str, ...]
    strengths: tuple[float, ...]
    plant: Callable[[float, int], Plant]
    place: Place = "run"


def _in_all(wrapper: type[wrappers.Fault], strength: float, seed: int) -> Plant:
    return Plant(wrap=lambda env, number: wrapper(env, strength, seed * 100 + number))


def _in_one(wrapper: type[wrappers.Fault], strength: float, seed: int) -> Plant:
    return Plant(wrap=lambda env, number: wrapper(env, strength, seed) if number == ODD else env)


def _in_share(wrapper: type[wrappers.Fault], strength: float, seed: int) -> Plant:
    return Plant(wrap=lambda env, number: wrapper(env, 1, seed) if number < strength * 8 else env)


def _setting(name: str, strength: float, seed: int) -> Plant:
    return Plant(settings={name: strength})


def _model(change: Callable[[PPO, float], None], strength: float, seed: int) -> Plant:
    return Plant(model=lambda model: change(model, strength))


def _limit(strength: float, seed: int) -> Plant:
    return Plant(settings={"env_kwargs": {"max_episode_steps": int(strength)}})


def _short_buffer(strength: float, seed: int) -> Plant:
    return Plant(settings={"n_steps": int(strength), "batch_size": int(strength)})


CART, LAKE, PENDULUM, TAXI = "CartPole-v1", "FrozenLake-v1", "Pendulum-v1", "Taxi-v4"
ACROBOT, LANDER, CAR, GRID = "Acrobot-v1", "LunarLander-v3", "MountainCarContinuous-v0", "MiniGrid-Empty-5x5-v0"
WALKER = "BipedalWalker-v3"
ENVIRONMENTS = (CART, ACROBOT, LAKE, LANDER, PENDULUM, CAR, TAXI, GRID)
# Thresholds are set on these environments, and on seeds of even number; the others are only reported on.
FITTED = (CART, LAKE, PENDULUM, TAXI)

FAULTS: Mapping[str, PlantedFault] = {
    "reset rows": PlantedFault(
        ("reset_rows",), (CART, LAKE, LANDER, GRID), (1.0, 0.5), partial(_in_share, wrappers.LateReset)
    ),
    "time limit as end": PlantedFault(
        ("time_limit_as_end",), (PENDULUM, TAXI, ACROBOT, CAR), (1.0, 0.5), partial(_in_all, wrappers.LimitIsTheEnd)
    ),
    "reward scale": PlantedFault(
        ("reward_scale",), (CART, TAXI, LANDER, ACROBOT), (1000.0, 100.0, 0.001), partial(_in_all, wrappers.RewardScale)
    ),
    "not finite": PlantedFault(
        ("not_finite",), (CART, PENDULUM, LANDER, GRID), (5e-3, 2e-4), partial(_in_all, wrappers.NotFiniteReward)
    ),
    "one env: reward sign": PlantedFault(
        ("odd_environment_reward",), (CART, PENDULUM, LANDER, ACROBOT), (-1.0, -0.3),
        partial(_in_one, wrappers.RewardScale), "environment",
    ),
    "one env: reward scale": PlantedFault(
        ("odd_environment_reward",), (CART, PENDULUM, LANDER, ACROBOT), (10.0, 3.0),
        partial(_in_one, wrappers.RewardScale), "environment",
    ),
    "one env: frozen": PlantedFault(
        ("odd_environment_frozen",), (CART, PENDULUM, LANDER, GRID), (1.0, 0.5),
        partial(_in_one, wrappers.FrozenObservation), "environment",
    ),
    "one env: shifted": PlantedFault(
        ("odd_environment_shifted",), (CART, PENDULUM, LANDER, ACROBOT), (2.0, 0.5),
        partial(_in_one, wrappers.ShiftedObservation), "environment",
    ),
    "one env: actions": PlantedFault(
        ("odd_environment_actions",), (CART, PENDULUM, LANDER, CAR), (1.0, 0.5),
        partial(_in_one, wrappers.PermutedActions), "environment",
    ),
    "one env: resets": PlantedFault(
        ("odd_environment_resets",), (CART, PENDULUM, LANDER, GRID), (1.0, 5.0),
        partial(_in_one, wrappers.EndsAtOnce), "environment",
    ),
    "copies": PlantedFault(
        ("copies",), (CART, TAXI, LANDER, PENDULUM), (1.0, 0.15),
        lambda strength, seed: Plant(all_environments=lambda v: wrappers.CopiedEnvironments(v, strength)),
        "environment",
    ),
    "large feature": PlantedFault(
        ("large_feature",), (CART, PENDULUM, LANDER, ACROBOT), (1000.0, 100.0),
        partial(_in_all, wrappers.LargeFeature), "feature",
    ),
    "rate too high": PlantedFault(
        ("rate_too_high",), (CART, LAKE, LANDER, ACROBOT), (0.1, 0.01), partial(_setting, "lr")
    ),
    "rate too low": PlantedFault(
        ("rate_too_low",), (CART, PENDULUM, LANDER, ACROBOT), (1e-7, 1e-6), partial(_setting, "lr")
    ),
    "short discount": PlantedFault(
        ("short_discount",), (CART, TAXI, LANDER, ACROBOT), (0.1, 0.5), partial(_setting, "gamma")
    ),
    "value untrained": PlantedFault(
        ("value_untrained", "explained_variance"), (CART, PENDULUM, LANDER, ACROBOT), (0.0, 0.02),
        partial(_model, hosts.value_steps),
    ),
    "value diverging": PlantedFault(
        ("value_diverging", "value_untrained", "explained_variance"), (CART, PENDULUM, LANDER, ACROBOT), (-3.0, -1.0),
        partial(_model, hosts.value_steps),
    ),
    "entropy collapsed": PlantedFault(
        ("entropy_collapsed",), (CART, PENDULUM, LANDER, ACROBOT), (10.0, 6.0), partial(_model, hosts.sharp_policy)
    ),
    "entropy held up": PlantedFault(
        ("entropy_held_up",), (CART, PENDULUM, LANDER, CAR), (1.0, 0.1), partial(_setting, "ent_coef")
    ),
    "noise for reward": PlantedFault(
        ("no_signal",), (CART, TAXI, LANDER, ACROBOT), (1.0, 0.9), partial(_in_all, wrappers.NoiseForReward)
    ),
    "rare huge reward": PlantedFault(
        ("dominated",), (CART, PENDULUM, LANDER, ACROBOT), (1000.0, 100.0), partial(_in_all, wrappers.RareHugeReward)
    ),
    "late reward": PlantedFault(
        ("late_reward",), (CART, PENDULUM, LANDER, CAR, TAXI), (1.0, 3.0), partial(_in_all, wrappers.LateReward)
    ),
    "stale log-probabilities": PlantedFault(
        ("stale_log_probs",), (CART, PENDULUM, LANDER, ACROBOT), (5.0, 1.0),
        lambda strength, seed: Plant(callback=lambda: hosts.StaleLogProbs(int(strength))),
    ),
    "saturated actions": PlantedFault(
        ("saturated_actions",), (PENDULUM, CAR, WALKER), (2.0, 1.0), partial(_model, hosts.wide_actions)
    ),
    "dead units": PlantedFault(
        ("dead_units",), (CART, PENDULUM, LANDER, ACROBOT), (1.0, 0.9), partial(_model, hosts.dead_units)
    ),
    "no episode ends": PlantedFault(
        ("no_episode_ends",), (PENDULUM, TAXI, ACROBOT, CAR), (8.0, 16.0), _short_buffer
    ),
    "lucky success": PlantedFault(
        ("lucky_success",), (LAKE, GRID), (8.0, 12.0),
        lambda strength, seed: _limit(strength, seed),
    ),
    "undone": PlantedFault(
        ("undone",), (CART, ACROBOT, GRID), (1.0, 0.8),
        lambda strength, seed: Plant(callback=lambda: hosts.Undo(UNDONE, strength)), "round",
    ),
}  # fmt: skip
