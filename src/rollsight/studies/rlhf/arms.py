"""The arms of the study, from plain text: `iif:0.5@lr=0.0005` is IIF with p = 50 % at a learning rate of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rollsight.errors import RollsightError

if TYPE_CHECKING:
    from rollsight.training.language.run import RunSettings

# What the arms are, as tables say it, and what of the trainer's options they change.
KINDS = {
    "ppo": "standard PPO",
    "iif": "leave out the fraction p of the negative completions, scored against f_seq",
    "iif-return": "the same, scored against f_return",
    "iif-reward": "the same, scored against the z-scored reward",
    "random": "leave out as many random completions; scoring is not charged",
    "matched-steps": "random, with as many optimiser steps as standard PPO",
    "crossfit": "iif, each half of the completions scored against the other's gradient",
}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "ppo": {"target": None},
    "iif": {},
    "iif-return": {"target": "return"},
    "iif-reward": {"target": "reward"},
    "random": {"random": True},
    "matched-steps": {"random": True, "as_many_steps": True},
    "crossfit": {"cross_fit": True},
}


@dataclass(frozen=True)
class Arm:
    """One arm. p: fraction of the negative completions; lr: None stands for the study's."""

    kind: str
    p: float = 1.0
    lr: float | None = None

    def __str__(self) -> str:
        """As it is written; also the name of its folder."""
        rate = "" if self.lr is None else f"@lr={self.lr:g}"
        return self.kind + ("" if self.p == 1 else f":{self.p:g}") + rate

    @property
    def scored(self) -> bool:
        """Whether scores decide what is left out; where they only count, their time is not charged."""
        return self.kind not in ("ppo", "random", "matched-steps")

    def settings(self, study: RunSettings, seed: int) -> RunSettings:
        """Those of its run."""
        options = replace(study.options, drop=self.p, lr=self.lr or study.options.lr, **_OPTIONS[self.kind])
        return replace(study, options=options, seed=seed)


def arm_of(text: str) -> Arm:
    """The arm that a text stands for: KIND[:P][@lr=X].

    Raises:
        RollsightError: no such kind or option, or a value that is none.
    """
    head, _, option = text.partition("@")
    kind, _, p = head.partition(":")
    name, _, lr = option.partition("=")
    if kind not in KINDS:
        raise RollsightError(f"{text!r} is no arm: {kind!r} is unknown; choose from {', '.join(KINDS)}")
    if p and kind == "ppo":
        raise RollsightError(f"{text!r} is no arm: ppo takes no p; write 'ppo'")
    try:
        arm = Arm(kind, float(p or 1), float(lr) if option else None)
    except ValueError:
        arm = Arm(kind, p=0)
    if (option and name != "lr") or not 0 < arm.p <= 1 or (arm.lr is not None and not arm.lr > 0):
        raise RollsightError(f"{text!r} is no arm: write KIND, KIND:P with P above 0 and at most 1, or KIND@lr=X")
    return arm
