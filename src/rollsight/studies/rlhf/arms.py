"""The arms of the study, and the runs that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from rollsight.studies import arms
from rollsight.studies.arms import Kind

if TYPE_CHECKING:
    from rollsight.training.language.settings import RunSettings

# `make`: what of the trainer's options the arms change.
KINDS: Mapping[str, Kind] = {
    "ppo": Kind("standard PPO", {"target": "none"}, takes_p=False),
    "iif": Kind("leave out the fraction p of the negative completions, scored against f_seq", {}),
    "iif-return": Kind("the same, scored against f_return", {"target": "return"}),
    "iif-reward": Kind("the same, scored against the z-scored reward", {"target": "reward"}),
    "random": Kind("leave out the same number of random completions; scoring is not charged", {"random": True}),
    "matched-steps": Kind(
        "random, with the number of optimiser steps of standard PPO", {"random": True, "as_many_steps": True}
    ),
    "crossfit": Kind("iif, each half of the completions scored against the other's gradient", {"cross_fit": True}),
}


@dataclass(frozen=True)
class RLHFArm(arms.Arm):
    """One arm of this study."""

    kinds: ClassVar[Mapping[str, Kind]] = KINDS
    usual_p: ClassVar[float | None] = 1.0

    @property
    def scored(self) -> bool:
        """Whether scores decide what is left out; where they only count, their time is not charged."""
        return self.kind not in ("ppo", "random", "matched-steps")

    def settings(self, study: RunSettings, seed: int) -> RunSettings:
        """Those of its run."""
        options = replace(study.options, drop=self.p or 1.0, lr=self.lr or study.options.lr, **KINDS[self.kind].make)
        return replace(study, options=options, seed=seed)
