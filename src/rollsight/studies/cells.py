"""One run of a language-model study: an arm with a seed, and the run folder that it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from rollsight.studies.arms import AnArm
from rollsight.studies.store import Columns, Key

KEYS = ("arm", "seed")


class Rounds(Protocol):
    """Settings that say how long a run is."""

    @property
    def rounds(self) -> int: ...


Settings = TypeVar("Settings", bound=Rounds)


@dataclass(frozen=True)
class LanguageCell(Generic[AnArm, Settings]):
    """One run.

    arm: how it trains.
    seed: of every random stream.
    settings: that all runs of the study share.
    folder: of the study.
    """

    arm: AnArm
    seed: int
    settings: Settings
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.arm} {self.seed}"

    @property
    def key(self) -> Key:
        return str(self.arm), self.seed

    @property
    def rounds(self) -> int:
        return self.settings.rounds

    @property
    def run_folder(self) -> Path:
        return run_folder(self.folder, self.arm, self.seed)

    def done(self, columns: Columns) -> bool:
        """Whether its curve goes as far as it should."""
        return bool(columns["round"][-1] >= self.rounds)


def run_folder(study: Path, arm: AnArm, seed: int) -> Path:
    """Where a run of the study in a folder writes its records. On a cluster it is on the machine that trained."""
    return study / arm.folder / str(seed)


def silence_transformers() -> None:
    """No bars nor warnings of its own: runs side by side share one terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
