"""The arms of the study, and what they ask of the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rollsight.studies import arms
from rollsight.studies.arms import Kind

if TYPE_CHECKING:
    from rollsight.records import Records
    from rollsight.selection import DropNegative, DropRandom

_RANDOM = "random-"
# `make`: the unit that is left out, and how `rollsight.adapters.trl.attach` scores.
_LEFT_OUT = {
    "iif": Kind(
        "leave out the fraction p of the negative completions, scored against f_seq of the round itself",
        ("record", {"target": "sequence"}),
    ),
    "iif-group": Kind("the same with whole groups: all completions of a prompt", ("group", {"target": "sequence"})),
    "iif-held-out": Kind(
        "the same, scored against the log-likelihood of right answers to held-out problems",
        ("record", {"target": "held_out"}),
    ),
    "dtv-loo": Kind(
        "leave out completions whose own gradient opposes the mean of the others'",
        ("record", {"target": "objective", "leave_self_out": True}),
    ),
}
KINDS: Mapping[str, Kind] = {
    "grpo": Kind("plain GRPO", ("record", None), takes_p=False),
    **_LEFT_OUT,
    **{
        f"{_RANDOM}{name}": Kind(f"the number that {name} would, at random; scoring is not charged", kind.make)
        for name, kind in _LEFT_OUT.items()
    },
}


@dataclass(frozen=True)
class GRPOArm(arms.Arm):
    """One arm of this study."""

    kinds: ClassVar[Mapping[str, Kind]] = KINDS
    usual_p: ClassVar[float | None] = 1.0

    @property
    def scored(self) -> bool:
        """Whether scores decide what is left out; where they only count, their time is not charged."""
        return self.kind in _LEFT_OUT

    @property
    def unit(self) -> str:
        """The identity of the records that are left out together."""
        unit: str = KINDS[self.kind].make[0]
        return unit

    def attachment(self, held_out: Records) -> dict[str, Any] | None:
        """Target and scoring of `rollsight.adapters.trl.attach`; None where nothing is scored. held_out: right answers,
        with advantage 1."""
        from rollsight.targets import Sequence

        how: dict[str, Any] | None = KINDS[self.kind].make[1]
        if how is not None and how["target"] == "held_out":
            return how | {"target": Sequence(held_out, name="held_out")}
        return how

    def rule(self, seed: int) -> DropNegative | DropRandom:
        """What it drops, one completion at least staying."""
        from rollsight.selection import DropNegative, DropRandom

        rule = DropNegative(self.p or 1.0, unit=self.unit, min_keep=1)
        return DropRandom(rule, seed) if self.kind.startswith(_RANDOM) else rule
