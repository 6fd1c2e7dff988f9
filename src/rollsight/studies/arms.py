"""Arms as plain text: `iif:0.5@lr=0.0005` is the kind `iif` with p = 50 % and a learning rate of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeVar

from rollsight.errors import RollsightError


@dataclass(frozen=True)
class Kind:
    """What arms of this kind do.

    text: as help and tables say it.
    make: what the study makes its runs of; each study says what that is.
    takes_p: whether the arm leaves out a fraction p of the negative units.
    """

    text: str
    make: Any = None
    takes_p: bool = True


@dataclass(frozen=True)
class Option:
    """What may follow an @.

    field: of the arm.
    values: which there are, as help and errors say it.
    read: the value of a text; `ValueError` where there is none.
    write: the text of a value.
    """

    field: str
    values: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]


def above_zero(text: str) -> float:
    """A number above 0; `ValueError` for others."""
    value = float(text)
    if not value > 0:
        raise ValueError(text)
    return value


LR = Option("lr", "X", above_zero, "{:g}".format)


@dataclass(frozen=True)
class Arm:
    """One way of training in a study. What is None is the study's.

    kind: a name in `kinds`.
    p: fraction of the negative units to leave out; higher drops more.
    lr: learning rate.
    """

    kinds: ClassVar[Mapping[str, Kind]]  # the first one is the standard that others are compared with
    options: ClassVar[Mapping[str, Option]] = {"lr": LR}
    usual_p: ClassVar[float | None] = None  # what p is where none is written; None: the study's settings say it

    kind: str
    p: float | None = None
    lr: float | None = None

    @classmethod
    def of(cls, text: str) -> Self:
        """The arm that a text stands for: KIND[:P][@OPTION=X,...].

        Raises:
            RollsightError: no such kind or option, or a value that is none.
        """
        head, _, tail = text.partition("@")
        kind, _, p = head.partition(":")
        wrong = f"{text!r} is not a valid arm"
        if kind not in cls.kinds:
            raise RollsightError(f"{wrong}: {kind!r} is unknown; choose from {', '.join(cls.kinds)}")
        if p and not cls.kinds[kind].takes_p:
            raise RollsightError(f"{wrong}: {kind} takes no p; write {kind!r}")
        given: dict[str, Any] = {"p": _fraction(p, wrong) if p else None}
        for written in filter(None, tail.split(",")):
            name, _, value = written.partition("=")
            try:
                given[cls.options[name].field] = cls.options[name].read(value)
            except (KeyError, ValueError):
                known = ", ".join(f"{name}={option.values}" for name, option in cls.options.items())
                raise RollsightError(f"{wrong}: {written} is not an option; there are {known}") from None
        return cls(kind, **given | {"p": None if given["p"] == cls.usual_p else given["p"]})

    def __str__(self) -> str:
        """As it is written."""
        usual = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        written = [
            f"{name}={option.write(value)}"
            for name, option in self.options.items()
            if (value := getattr(self, option.field)) != usual[option.field]
        ]
        p = "" if self.p is None else f":{self.p:g}"
        return self.kind + p + (f"@{','.join(written)}" if written else "")

    @property
    def name(self) -> str:
        """Without its options."""
        return str(self).partition("@")[0]

    @property
    def written_options(self) -> str:
        """What follows the @."""
        return str(self).partition("@")[2]

    @property
    def folder(self) -> str:
        """The name of its folder, without the colon that some file systems refuse."""
        return str(self).replace(":", "_")

    @property
    def standard(self) -> Self:
        """The plain arm with the same options."""
        return replace(self, kind=next(iter(self.kinds)), p=None)

    @property
    def place(self) -> tuple[Any, ...]:
        """To sort by: arms with the same options together, those without first, and the kinds in their order."""
        return bool(self.written_options), self.written_options, self.kind_number, self.p or 0.0

    @property
    def kind_number(self) -> int:
        """Of its kind, which has a colour of its own."""
        return list(self.kinds).index(self.kind)


AnArm = TypeVar("AnArm", bound=Arm)


def standard_of(arm: AnArm, found: Container[AnArm], against: AnArm | None = None) -> AnArm | None:
    """What an arm is compared with: `against`, else the plain arm with its options, else that without; None where there
    is none, or it is that arm."""
    choices = (arm.standard, type(arm)(arm.standard.kind)) if against is None else (against,)
    return next((one for one in choices if one in found and one != arm), None)


def used_kinds(arms: Iterable[Arm]) -> dict[str, str]:
    """What the kinds of these arms do, by name."""
    return {arm.kind: arm.kinds[arm.kind].text for arm in sorted(arms, key=lambda arm: arm.kind_number)}


def spelled(arm: type[Arm]) -> str:
    """How arms are written and which kinds there are, for help."""
    options = ",".join(f"{name}={option.values}" for name, option in arm.options.items())
    kinds = "; ".join(f"{name}: {kind.text}" for name, kind in arm.kinds.items())
    return f"Arms are written KIND[:P][@{options}]. {kinds}."


def listed(words: Iterable[str]) -> list[str]:
    """Arms or environments, whether spaces or commas stand between them; commas inside an arm's options stay."""
    parts = list[str]()
    for part in ",".join(words).split(","):
        if parts and "=" in part and "@" not in part:
            parts[-1] += f",{part}"
        elif part:
            parts.append(part)
    return parts


def _fraction(text: str, wrong: str) -> float:
    try:
        p = float(text)
    except ValueError:
        p = math.nan
    if not 0 < p <= 1:
        raise RollsightError(f"{wrong}: p is {text}; give a number above 0 and at most 1")
    return p
