"""The paper's settings as data (Hu et al. 2025, section 4): rounds, p and optimiser by environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rollsight.adapters.sb3.environments import observations_of

Algorithm: TypeAlias = Literal["ppo", "a2c"]
Optimizer: TypeAlias = Literal["sgd", "adam", "rmsprop"]

RECORDS_PER_ROUND = 2048


@dataclass(frozen=True)
class EnvSettings:
    """rounds: of 2048 records; drop: the paper's p, 0 where it has none; optimizer and lr: PPO's."""

    rounds: int = 50
    drop: float = 0.0
    optimizer: Optimizer = "sgd"
    lr: float = 5e-3


_PAPER = {
    "FrozenLake-v1": EnvSettings(rounds=50, drop=0.5),
    "Acrobot-v1": EnvSettings(rounds=50, drop=0.5),
    "MiniGrid-Empty-8x8-v0": EnvSettings(rounds=40, drop=0.125),
    "highway-v0": EnvSettings(rounds=100, drop=0.5),
    "LunarLander-v3": EnvSettings(rounds=150, drop=0.125),
    "BipedalWalker-v3": EnvSettings(rounds=500, drop=0.0625, optimizer="adam", lr=3e-4),
}


def settings_for(env: str) -> EnvSettings:
    """The paper's settings for an environment it has; its common ones, with no dropping, for any other."""
    if env in _PAPER:
        return _PAPER[env]
    if observations_of(env) == "atari":
        return EnvSettings(rounds=500, optimizer="adam", lr=2.5e-4)
    return EnvSettings()
