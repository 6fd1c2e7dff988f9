"""What every study is: runs of arms with seeds, whose curves are kept in one file, tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rollsight.studies import store
from rollsight.studies.arms import AnArm
from rollsight.studies.results import write_table
from rollsight.studies.runner import Job, Report
from rollsight.studies.settings import SETTINGS
from rollsight.studies.store import Columns, Key, Rows

Results = TypeVar("Results")


class Cell(Job, Protocol):
    """One run of a study. It survives pickling, and whatever machine runs it, the study's own process keeps its
    result."""

    @property
    def key(self) -> Key:
        """A value for each of the study's keys."""
        ...

    def done(self, columns: Columns) -> bool:
        """Whether a stored run of this key is all that it should be."""
        ...

    def run(self, report: Report) -> Rows:
        """Train, and return what was measured."""
        ...


ACell = TypeVar("ACell", bound=Cell)


def _no_texts(folder: Path, results: Any, round: int | None) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Study(Generic[AnArm, Results]):
    """One kind of study.

    name: on the command line.
    keys: the columns that name a run, the last one its seed.
    arms: the class of its arms.
    read: puts together what is in a folder; arms are compared with their standard, or all with a given one.
    markdown: all tables.
    rows: every figure, as one long table.
    pictures: draws into a folder, and says what was drawn.
    texts: more files by name, made of the study's folder, its results and the round to show (None: the last one).
    files: what it writes, so that a folder with other files of these names is refused.
    """

    name: str
    keys: Sequence[str]
    arms: type[AnArm]
    read: Callable[[Path, AnArm | None], Results]
    markdown: Callable[[Results], str]
    rows: Callable[[Results], Iterable[Mapping[str, object]]]
    pictures: Callable[[Results, Path], list[Path]]
    texts: Callable[[Path, Results, int | None], Mapping[str, str]] = _no_texts
    files: Sequence[str] = ("results.md", "results.csv", "index.html")

    def started(self, folder: Path) -> bool:
        """Whether a folder is of a study."""
        return (folder / SETTINGS).exists()

    def left(self, cells: Sequence[ACell], folder: Path) -> list[ACell]:
        """Those that are still to be run."""
        runs = store.stored(folder, self.keys)
        return [cell for cell in cells if cell.key not in runs or not cell.done(runs[cell.key])]

    def keep(self, cell: Cell, rows: Rows, folder: Path) -> None:
        """Keep what a run measured."""
        store.add(folder, self.keys, cell.key, rows)

    def gather(self, folder: Path) -> None:
        """Put what runs measured into the study's one file."""
        store.gather(folder, self.keys)

    def write(self, folder: Path, results: Results, round: int | None) -> tuple[dict[str, str], list[Path]]:
        """Write results.csv and the pictures, and return the texts by name, which are still to be written."""
        texts = {"results.md": self.markdown(results), **self.texts(folder, results, round)}
        write_table(folder / "results.csv", self.rows(results))
        return texts, self.pictures(results, folder)
