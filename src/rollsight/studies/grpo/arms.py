"""The arms of the study, and what they ask of the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rollsight import targets
from rollsight.selection import DropNegative, DropRandom
from rollsight.studies import arms

if TYPE_CHECKING:
    from rollsight.records import Records

_LEFT_OUT = {
    "iif": "leave out the fraction p of the negative completions, scored against f_seq of the round itself",
    "iif-group": "the same with whole groups: all completions of a prompt",
    "iif-held-out": "the same, scored against the log-likelihood of right answers to held-out problems",
    "dtv-loo": "leave out completions whose own gradient opposes the mean of the others'",
}
_RANDOM = "random-"
# What the arms are, as tables say it.
KINDS: Mapping[str, str] = {
    "grpo": "plain GRPO",
    **_LEFT_OUT,
    **{f"{_RANDOM}{kind}": f"the number that {kind} would, at random; scoring is not charged" for kind in _LEFT_OUT},
}


@dataclass(frozen=True)
class Arm(arms.Arm):
    """One arm of this study."""

    @property
    def scored(self) -> bool:
        """Whether scores decide what is left out; where they only count, their time is not charged."""
        return self.kind in _LEFT_OUT

    @property
    def unit(self) -> str:
        """The identity of the records that are left out together."""
        return "group" if self.kind.endswith("iif-group") else "record"

    def attachment(self, held_out: Records) -> dict[str, Any] | None:
        """Target and scoring of `rollsight.adapters.trl.attach`; None where nothing is scored. held_out: right answers,
        with advantage 1."""
        match self.kind.removeprefix(_RANDOM):
            case "grpo":
                return None
            case "iif-held-out":
                return {"target": targets.Sequence(held_out, name="held_out")}
            case "dtv-loo":
                return {"target": "objective", "leave_self_out": True}
        return {"target": "sequence"}

    def rule(self, seed: int) -> DropNegative | DropRandom:
        """What it drops, one completion at least staying."""
        rule = DropNegative(self.p, unit=self.unit, min_keep=1)
        return DropRandom(rule, seed) if self.kind.startswith(_RANDOM) else rule


def arm_of(text: str) -> Arm:
    """The arm that a text stands for: KIND[:P][@lr=X].

    Raises:
        RollsightError: no such kind or option, or a value that is none.
    """
    return Arm(*arms.parse(text, KINDS, "grpo"))
