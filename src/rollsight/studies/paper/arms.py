"""The arms of the study, from plain text: `iif:0.25@lr=0.015` is IIF with p = 25 % at a learning rate of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from rollsight.errors import RollsightError
from rollsight.selection import DropHarm, DropNegative, DropRandom
from rollsight.training.options import Optimizer
from rollsight.training.paper import EnvSettings, rates

if TYPE_CHECKING:
    from rollsight.training.compiled.arms import Arm as TrainingArm

# What the arms are, as help and tables say it. Where p is in the name, it follows a colon; else it is the paper's.
KINDS = {
    "ppo": "standard PPO",
    "iif": "drop the fraction p of the negative records",
    "random": "drop the same number of random records; scoring is not charged",
    "permuted": "IIF on scores whose advantages are permuted over the records",
    "crossfit": "IIF, each record scored against the half that does not hold its episode",
    "matched-norm": "standard PPO with updates of the policy as long as IIF's",
    "matched-kl": "standard PPO with updates that change the policy as much as IIF's",
    "matched-steps": "random, with the number of optimiser steps of standard PPO",
    "mismatch": "drop p of the records with wrong signs, largest |A_bar - A_hat| first",
    "product": "drop p of the records with wrong signs, lowest A_bar * A_hat first",
    "prioritised": "minibatches by rank of the TD error, exponent 0.6",
    "dtv": "drop every episode that opposes the mean gradient of the objective",
    "dtv-loo": "the same, less the episode's own part",
    "preconditioned": "IIF along Adam's direction, with @optimizer=adam",
    "rescored": "IIF that scores and drops anew in every epoch",
    "actor": "IIF whose dropped records leave the policy's loss only: the value function learns from all",
    "critic": "IIF whose dropped records leave the value function's loss only: the policy learns from all",
    "paused": "IIF that drops nothing in rounds whose episodes all have the same return",
    "adaptive": "paused, and drops the fewest records that carry half of the negative scores' sum: no p to set",
}
_WITH_P = {"iif", "random", "permuted", "crossfit", "matched-norm", "matched-kl", "matched-steps"}
_WITH_P |= {"mismatch", "product", "preconditioned", "rescored", "actor", "critic", "paused"}
_FLOOR = 64  # one minibatch stays


@dataclass(frozen=True)
class Arm:
    """One arm.

    kind: a name in `KINDS`.
    p: fraction of the negative records to leave out; None stands for the paper's.
    optimizer: None stands for the paper's.
    lr: learning rate; None stands for the paper's.
    max_grad_norm: gradients longer than this are cut to it; infinity switches clipping off.
    envs: environments in parallel; the paper has one.
    """

    kind: str
    p: float | None = None
    optimizer: Optimizer | None = None
    lr: float | None = None
    max_grad_norm: float = 0.5
    envs: int = 1

    def __str__(self) -> str:
        """As it is written."""
        options = {
            "optimizer": self.optimizer,
            "lr": None if self.lr is None else f"{self.lr:g}",
            "clip": {0.5: None, float("inf"): "off"}.get(self.max_grad_norm, f"{self.max_grad_norm:g}"),
            "envs": None if self.envs == 1 else self.envs,
        }
        given = ",".join(f"{name}={value}" for name, value in options.items() if value is not None)
        return self.kind + ("" if self.p is None else f":{self.p:g}") + (f"@{given}" if given else "")

    @property
    def folder(self) -> str:
        """The name of its folder, without the colon that some file systems refuse."""
        return str(self).replace(":", "_")

    def resolved(self, settings: EnvSettings) -> Arm:
        """With the environment's p, optimiser and learning rate for what is not given.

        Raises:
            RollsightError: Adam's direction is asked for where SGD trains.
        """
        p = self.p if self.p is not None or self.kind not in _WITH_P else settings.drop or 0.5
        optimizer = self.optimizer or settings.optimizer
        if self.kind == "preconditioned" and optimizer == "sgd":
            raise RollsightError(f"{str(self)!r} would be iif, as SGD has no moments; write optimizer=adam after an @.")
        return replace(self, p=p, optimizer=optimizer, lr=self.lr or settings.lr_with(optimizer))

    def training(self, seed: int) -> TrainingArm:
        """What the engine runs; of a resolved arm."""
        from rollsight.training.compiled import arms, rankings

        drop = DropNegative(self.p or 0.0, min_keep=_FLOOR)
        random = DropRandom(drop, seed)
        harm = DropHarm(0.5, min_keep=_FLOOR)
        episodes = DropNegative(1.0, "episode", min_keep=_FLOOR)
        made: dict[str, Callable[[], TrainingArm]] = {
            "ppo": lambda: arms.Filtered(every=0),
            "iif": lambda: arms.Filtered(drop),
            "random": lambda: arms.Filtered(random),
            "permuted": lambda: arms.Filtered(drop, ranking=rankings.permuted),
            "crossfit": lambda: arms.Filtered(drop, ranking=rankings.cross_fitted),
            "matched-norm": lambda: arms.MatchedNorm(arms.Filtered(drop)),
            "matched-kl": lambda: arms.MatchedKL(arms.Filtered(drop)),
            "matched-steps": lambda: arms.Filtered(random, as_many_steps=True),
            "mismatch": lambda: arms.Filtered(drop, ranking=rankings.sign_mismatch),
            "product": lambda: arms.Filtered(drop, ranking=rankings.agreement),
            "prioritised": arms.Prioritised,
            "dtv": lambda: arms.Filtered(episodes, ranking=rankings.objective),
            "dtv-loo": lambda: arms.Filtered(episodes, ranking=rankings.objective_without_own_episode),
            "preconditioned": lambda: arms.Filtered(drop, ranking=rankings.preconditioned),
            "rescored": lambda: arms.Rescored(drop),
            "actor": lambda: arms.Filtered(drop, only="in_policy"),
            "critic": lambda: arms.Filtered(drop, only="in_value"),
            "paused": lambda: arms.Filtered(drop, pause=True),
            "adaptive": lambda: arms.Filtered(harm, pause=True),
        }
        return made[self.kind]()


def arm_in(folder: str) -> Arm:
    """The arm whose folder has this name."""
    return arm_of(folder.replace("_", ":"))


def arm_of(text: str) -> Arm:
    """The arm that a text stands for: KIND[:P][@lr=X,optimizer=sgd|adam,clip=X|off,envs=N].

    Raises:
        RollsightError: no such kind or option, or a value that is none.
    """
    head, _, options = text.partition("@")
    kind, _, p = head.partition(":")
    if kind not in KINDS:
        raise RollsightError(f"{text!r} is not a valid arm: {kind!r} is unknown; choose from {', '.join(KINDS)}.")
    arm = Arm(kind)
    try:
        if p:
            if kind not in _WITH_P:
                raise RollsightError(f"{text!r} is not a valid arm: {kind} takes no p; write {kind!r}.")
            arm = replace(arm, p=DropNegative(float(p)).p)
        for option in filter(None, options.split(",")):
            name, _, value = option.partition("=")
            arm = _with(arm, name, value, text)
    except ValueError as error:
        if isinstance(error, RollsightError):
            raise
        raise RollsightError(
            f"{text!r} is not a valid arm ({error}); write for example iif:0.25@lr=0.015,clip=off."
        ) from None
    return arm


def _with(arm: Arm, name: str, value: str, text: str) -> Arm:
    match name:
        case "lr" if float(value) > 0:
            return replace(arm, lr=float(value))
        case "optimizer" if value in rates():
            return replace(arm, optimizer=cast(Optimizer, value))
        case "clip" if value == "off" or float(value) > 0:
            return replace(arm, max_grad_norm=float("inf") if value == "off" else float(value))
        case "envs" if int(value) > 0:
            return replace(arm, envs=int(value))
    raise RollsightError(
        f"{text!r} is not a valid arm: {name}={value} is not an option; there are lr=X, optimizer=sgd or adam, "
        "clip=X or off, envs=N."
    )
