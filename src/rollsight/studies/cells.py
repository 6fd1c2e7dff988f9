"""One run of a language-model study: an arm with a seed, whose learning curve is a CSV file next to its run folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from rollsight.errors import RollsightError
from rollsight.runs import whole_file
from rollsight.studies.arms import Arm
from rollsight.studies.curves import as_text, read_curve, write_curve

_SETTINGS = "settings.json"  # in the study's folder


class Rounds(Protocol):
    """Settings that say how long a run is."""

    @property
    def rounds(self) -> int: ...


AnArm = TypeVar("AnArm", bound=Arm)
Study = TypeVar("Study", bound=Rounds)


@dataclass(frozen=True)
class StudyCell(Generic[AnArm, Study]):
    """One run of a study.

    arm: how it trains.
    seed: of every random stream.
    study: settings that all runs share.
    folder: of the study.
    """

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


def keep_settings(folder: Path, settings: Any, study: str, *, growing: Collection[str] = ()) -> None:
    """Write a study's settings, a dataclass, into its folder.

    study: its name on the command line; growing: names of settings that may change later.

    Raises:
        RollsightError: the folder is a study with others.
    """
    path, mine = folder / _SETTINGS, asdict(settings)
    if path.exists():
        stored = _flat(stored_settings(folder, study))
        if not stored.keys() & mine.keys():
            raise RollsightError(f"{path} is not of a study: choose another --out")
        for name, value in _flat(mine).items():
            if name not in growing and stored.get(name, value) != value:
                raise RollsightError(
                    f"{folder} was started with {name} {stored[name]}, not {value}: give the same settings, or another "
                    "--out"
                )
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(mine, indent=2) + "\n", "utf-8")


def stored_settings(folder: Path, study: str) -> dict[str, Any]:
    """What `keep_settings` wrote. study: its name on the command line.

    Raises:
        RollsightError: the folder holds none.
    """
    path = folder / _SETTINGS
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RollsightError(
            f"{folder} holds no study with its {_SETTINGS}: run `rollsight study {study} --out {folder}` first"
        ) from error
    return found


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, those of a group among the others."""
    groups = [value for value in settings.values() if isinstance(value, dict)]
    return {
        name: value for group in (settings, *groups) for name, value in group.items() if not isinstance(value, dict)
    }
