"""The arms of the study, and the runs that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rollsight.studies import arms

if TYPE_CHECKING:
    from rollsight.training.language.settings import RunSettings

# What the arms are, as tables say it, and what of the trainer's options they change.
KINDS = {
    "ppo": "standard PPO",
    "iif": "leave out the fraction p of the negative completions, scored against f_seq",
    "iif-return": "the same, scored against f_return",
    "iif-reward": "the same, scored against the z-scored reward",
    "random": "leave out the same number of random completions; scoring is not charged",
    "matched-steps": "random, with the number of optimiser steps of standard PPO",
    "crossfit": "iif, each half of the completions scored against the other's gradient",
}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "ppo": {"target": "none"},
    "iif": {},
    "iif-return": {"target": "return"},
    "iif-reward": {"target": "reward"},
    "random": {"random": True},
    "matched-steps": {"random": True, "as_many_steps": True},
    "crossfit": {"cross_fit": True},
}


class Arm(arms.Arm):
    """One arm of this study."""

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
    return Arm(*arms.parse(text, KINDS, "ppo"))
