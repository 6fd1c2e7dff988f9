"""Arms of the language-model studies as plain text: `iif:0.5@lr=0.0005` is IIF with p = 50 % at a learning rate of its
own."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from rollsight.errors import RollsightError


@dataclass(frozen=True)
class Arm:
    """One way of training in a study.

    kind: name of the rule.
    p: fraction of the negative units to leave out; higher drops more.
    lr: learning rate; None stands for the study's.
    """

    kind: str
    p: float = 1.0
    lr: float | None = None

    def __str__(self) -> str:
        """As it is written; also the name of its folder."""
        rate = "" if self.lr is None else f"@lr={self.lr:g}"
        return self.kind + ("" if self.p == 1 else f":{self.p:g}") + rate


def parse(text: str, kinds: Mapping[str, object], plain: str) -> tuple[str, float, float | None]:
    """kind, p and lr of KIND[:P][@lr=X]; the kind `plain` takes no p.

    Raises:
        RollsightError: no such kind or option, or a value that is none.
    """
    head, _, option = text.partition("@")
    kind, _, written = head.partition(":")
    name, _, rate = option.partition("=")
    if kind not in kinds:
        raise RollsightError(f"{text!r} is not a valid arm: {kind!r} is unknown; choose from {', '.join(kinds)}")
    if written and kind == plain:
        raise RollsightError(f"{text!r} is not a valid arm: {plain} takes no p; write {plain!r}")
    try:
        p, lr = float(written or 1), float(rate) if option else None
    except ValueError:
        p, lr = 0.0, None
    if (option and name != "lr") or not 0 < p <= 1 or (lr is not None and not lr > 0):
        raise RollsightError(
            f"{text!r} is not a valid arm: write KIND, KIND:P with P above 0 and at most 1, or KIND@lr=X"
        )
    return kind, p, lr


AnArm = TypeVar("AnArm", bound=Arm)


def standard_of(arm: AnArm, found: Container[AnArm], plain: str, against: AnArm | None) -> AnArm | None:
    """What it is compared with: `against`, else the plain arm of its learning rate, else of the study's; None where
    there is none, or it is that arm."""
    if against is not None:
        return against if arm != against else None
    same_rate = replace(arm, kind=plain, p=1.0)
    choices = (same_rate, replace(same_rate, lr=None))
    return next((one for one in choices if one in found and one != arm), None)


def place(arm: Arm, kinds: Sequence[str]) -> tuple[float, ...]:
    """To sort by: arms of one learning rate together, the study's first, and the kinds in their order."""
    return arm.lr or 0.0, kinds.index(arm.kind), -arm.p
