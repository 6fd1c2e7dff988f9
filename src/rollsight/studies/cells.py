"""One run of a language-model study: an arm with a seed, whose learning curve is one CSV file beside its run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from rollsight.studies.arms import Arm
from rollsight.studies.curves import as_text, read_curve, write_curve


class Rounds(Protocol):
    """Settings that say how long a run is."""

    @property
    def rounds(self) -> int: ...


AnArm = TypeVar("AnArm", bound=Arm)
Study = TypeVar("Study", bound=Rounds)


@dataclass(frozen=True)
class StudyCell(Generic[AnArm, Study]):
    """One run. study: settings that all share; folder: of the study; phases: whose seconds are its training time."""

    phases: ClassVar[Sequence[str]]

    arm: AnArm
    seed: int
    study: Study
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.arm} {self.seed}"

    @property
    def rounds(self) -> int:
        return self.study.rounds

    @property
    def path(self) -> Path:
        """Its curve."""
        return self.folder / str(self.arm) / f"{self.seed}.csv"

    @property
    def run_folder(self) -> Path:
        return self.path.with_suffix("")

    @property
    def done(self) -> bool:
        """Whether its curve goes as far as it should."""
        return self.path.exists() and read_curve(self.path, self.phases)["round"][-1] >= self.rounds

    def keep(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write its curve."""
        write_curve(self.path, as_text(rows))


def silence_transformers() -> None:
    """No bars nor warnings of its own: runs side by side share one terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
