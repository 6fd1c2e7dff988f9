"""The arms of the PPO studies on the compiled engine: `iif:0.25@lr=0.015` is IIF with p = 25 % and its own learning
rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from rollsight.errors import RollsightError
from rollsight.studies import arms
from rollsight.studies.arms import Kind, Option, above_zero
from rollsight.training.options import Optimizer

if TYPE_CHECKING:
    from rollsight.training.compiled.arms import Arm as TrainingArm
    from rollsight.training.paper import EnvSettings

_FLOOR = 64  # one minibatch stays
_CLIP = 0.5

# `make` takes the arm's `_Parts`.
KINDS: Mapping[str, Kind] = {
    "ppo": Kind("standard PPO", lambda of: of.filtered(every=0), takes_p=False),
    "iif": Kind("drop the fraction p of the negative records", lambda of: of.filtered(of.drop)),
    "random": Kind("drop the same number of random records; scoring is not charged", lambda of: of.filtered(of.random)),
    "permuted": Kind(
        "IIF on scores whose advantages are permuted over the records", lambda of: of.ranked(of.rankings.permuted)
    ),
    "crossfit": Kind(
        "IIF, each record scored against the half that does not hold its episode",
        lambda of: of.ranked(of.rankings.cross_fitted),
    ),
    "matched-norm": Kind(
        "standard PPO with updates of the policy as long as IIF's", lambda of: of.arms.MatchedNorm(of.filtered(of.drop))
    ),
    "matched-kl": Kind(
        "standard PPO with updates that change the policy as much as IIF's",
        lambda of: of.arms.MatchedKL(of.filtered(of.drop)),
    ),
    "matched-steps": Kind(
        "random, with the number of optimiser steps of standard PPO",
        lambda of: of.filtered(of.random, as_many_steps=True),
    ),
    "mismatch": Kind(
        "drop p of the records with wrong signs, largest |A_bar - A_hat| first",
        lambda of: of.ranked(of.rankings.sign_mismatch),
    ),
    "product": Kind(
        "drop p of the records with wrong signs, lowest A_bar * A_hat first",
        lambda of: of.ranked(of.rankings.agreement),
    ),
    "prioritised": Kind(
        "minibatches by rank of the TD error, exponent 0.6", lambda of: of.arms.Prioritised(), takes_p=False
    ),
    "dtv": Kind(
        "drop every episode that opposes the mean gradient of the objective",
        lambda of: of.filtered(of.episodes, ranking=of.rankings.objective),
        takes_p=False,
    ),
    "dtv-loo": Kind(
        "the same, less the episode's own part",
        lambda of: of.filtered(of.episodes, ranking=of.rankings.objective_without_own_episode),
        takes_p=False,
    ),
    "preconditioned": Kind(
        "IIF along Adam's direction, with @optimizer=adam", lambda of: of.ranked(of.rankings.preconditioned)
    ),
    "rescored": Kind("IIF that scores and drops anew in every epoch", lambda of: of.arms.Rescored(of.drop)),
    "actor": Kind(
        "IIF whose dropped records leave the policy's loss only: the value function learns from all",
        lambda of: of.filtered(of.drop, only="in_policy"),
    ),
    "critic": Kind(
        "IIF whose dropped records leave the value function's loss only: the policy learns from all",
        lambda of: of.filtered(of.drop, only="in_value"),
    ),
    "paused": Kind(
        "IIF that drops nothing in rounds whose episodes all have the same return",
        lambda of: of.filtered(of.drop, pause=True),
    ),
    "adaptive": Kind(
        "paused, and drops the fewest records that carry half of the negative scores' sum: no p to set",
        lambda of: of.filtered(of.harm, pause=True),
        takes_p=False,
    ),
}


class _Parts:
    """What arms with a p and a seed are made of."""

    def __init__(self, p: float, seed: int) -> None:
        from rollsight.selection import DropHarm, DropNegative, DropRandom
        from rollsight.training.compiled import arms, rankings

        self.arms, self.rankings, self.filtered = arms, rankings, arms.Filtered
        self.drop = DropNegative(p, min_keep=_FLOOR)
        self.random = DropRandom(self.drop, seed)
        self.harm = DropHarm(0.5, min_keep=_FLOOR)
        self.episodes = DropNegative(1.0, "episode", min_keep=_FLOOR)

    def ranked(self, ranking: Any) -> TrainingArm:
        """IIF by another ranking than its scores."""
        return self.filtered(self.drop, ranking=ranking)


def _optimizer(text: str) -> str:
    from rollsight.training.paper import rates  # here: it loads the environments

    if text not in rates():
        raise ValueError(text)
    return text


def _count(text: str) -> int:
    if not (value := int(text)) > 0:
        raise ValueError(text)
    return value


@dataclass(frozen=True)
class PPOArm(arms.Arm):
    """One arm. What is None is the paper's.

    optimizer: of policy and value function.
    max_grad_norm: gradients longer than this are cut to it; infinity switches clipping off.
    envs: environments in parallel; the paper has one.
    """

    kinds: ClassVar[Mapping[str, Kind]] = KINDS
    options: ClassVar[Mapping[str, Option]] = {
        "optimizer": Option("optimizer", "sgd|adam", _optimizer, str),
        "lr": arms.LR,
        "clip": Option(
            "max_grad_norm",
            "X|off",
            lambda text: math.inf if text == "off" else above_zero(text),
            lambda norm: "off" if math.isinf(norm) else f"{norm:g}",
        ),
        "envs": Option("envs", "N", _count, str),
    }

    optimizer: Optimizer | None = None
    max_grad_norm: float = _CLIP
    envs: int = 1

    def resolved(self, settings: EnvSettings) -> PPOArm:
        """With the environment's p, optimiser and learning rate for what is not given.

        Raises:
            RollsightError: Adam's direction is asked for where SGD trains.
        """
        p = self.p if self.p is not None or not KINDS[self.kind].takes_p else settings.drop or 0.5
        optimizer = self.optimizer or settings.optimizer
        if self.kind == "preconditioned" and optimizer == "sgd":
            raise RollsightError(f"{str(self)!r} would be iif, as SGD has no moments; write optimizer=adam after an @")
        return replace(self, p=p, optimizer=optimizer, lr=self.lr or settings.lr_with(optimizer))

    def named(self, settings: EnvSettings) -> PPOArm:
        """As a study writes it: what differs from the paper's settings spelt out, and p always."""
        whole = self.resolved(settings)
        return replace(
            whole,
            optimizer=None if whole.optimizer == settings.optimizer else whole.optimizer,
            lr=None if whole.lr == settings.lr else whole.lr,
        )

    def training(self, seed: int) -> TrainingArm:
        """What the engine runs; of a resolved arm."""
        made: TrainingArm = KINDS[self.kind].make(_Parts(self.p or 0.0, seed))
        return made
