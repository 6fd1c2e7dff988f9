"""The paper's settings, read from `paper.toml`, and the common ones for environments that it does not have."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from rollsight.environments.make import observations_of
from rollsight.training.options import Optimizer

RECORDS_PER_ROUND = 2048
A2C_LR = 7e-4  # Stable-Baselines3's


@dataclass(frozen=True)
class EnvSettings:
    """How an environment is trained in the paper's study.

    rounds: of 2048 records.
    drop: the paper's p, 0 where it has none.
    optimizer: PPO's.
    lr: PPO's learning rate.
    episodes: of a full study's evaluations.
    every: rounds from one of its evaluations to the next.
    reported: the paper's results by optimiser, as `paper.toml` has them.
    by_default: whether a study that names no environments runs it.
    """

    rounds: int = 50
    drop: float = 0.0
    optimizer: Optimizer = "sgd"
    lr: float = 5e-3
    episodes: int = 100
    every: int = 1
    reported: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    by_default: bool = True

    def lr_with(self, optimizer: Optimizer) -> float:
        """The learning rate with its own optimiser; with another, that of the paper's environments which have it, and
        A2C's for RMSprop, which none has."""
        return self.lr if optimizer == self.optimizer else {**rates(), "rmsprop": A2C_LR}[optimizer]


@cache
def paper() -> Mapping[str, EnvSettings]:
    """The paper's environments and its settings for them, in its order."""
    text = resources.files("rollsight.training").joinpath("paper.toml").read_text("utf-8")
    return {env: _settings(table) for env, table in tomllib.loads(text).items()}


def rates() -> Mapping[Optimizer, float]:
    """The optimisers that the paper uses, each with its learning rate."""
    return {settings.optimizer: settings.lr for settings in paper().values()}


def settings_for(env: str) -> EnvSettings:
    """The paper's settings for an environment it has; its common ones, with no dropping, for any other."""
    if env in paper():
        return paper()[env]
    if observations_of(env) == "atari":
        return EnvSettings(rounds=500, optimizer="adam", lr=2.5e-4)
    return EnvSettings()


def _settings(table: dict[str, Any]) -> EnvSettings:
    reported = {"adam": table.pop("reported_adam", {}), table["optimizer"]: table.pop("reported")}
    return EnvSettings(**table.pop("evaluations"), **table, reported=reported)
