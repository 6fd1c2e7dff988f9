"""Where things lie in a run folder, and how a file gets there whole or not at all."""

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rollsight.errors import RollsightError

Kind = Literal["records", "rounds", "evaluations", "snapshots", "checkpoints"]

FORMAT = 1  # raised when a reader of the older layout could misread a newer folder
METADATA = "run.json"
LOCK = ".lock"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
TABLES: tuple[Kind, ...] = ("records", "rounds", "evaluations")
SUFFIXES: dict[Kind, str] = {
    "rounds": ".parquet",  # first: where files are removed, a round stops being complete before it loses its records
    "records": ".parquet",
    "evaluations": ".parquet",
    "snapshots": ".pt",
    "checkpoints": ".pt",
}


def is_run(path: str | Path) -> bool:
    """Whether the path is a run folder, that is, holds a `run.json`."""
    return (Path(path) / METADATA).is_file()


def find_runs(folder: Path) -> list[Path]:
    """The run folders directly inside `folder`, by name; none where there is no such folder."""
    return sorted(child for child in folder.iterdir() if is_run(child)) if folder.is_dir() else []


def round_path(run: Path, kind: Kind, round: int) -> Path:
    return run / kind / f"round-{round:06d}{SUFFIXES[kind]}"


def round_numbers(run: Path, kind: Kind) -> list[int]:
    """The rounds that have a file of this kind, ascending. Temporary and foreign files do not count."""
    pattern = re.compile(rf"round-(\d{{6,}}){re.escape(SUFFIXES[kind])}")
    names = os.listdir(run / kind) if (run / kind).is_dir() else []
    return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))


def temporary_path(path: Path) -> Path:
    # In the same folder, so that the rename stays on one file system; a fixed name, because a run has one writer.
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file that appears under its name complete and on disk, or does not appear.

    Yields the temporary path to write to. When the block succeeds the file is synced and renamed; when it fails, for
    whatever reason, nothing is left behind.

    Raises:
        RollsightError: the disk is full, or the file cannot be written for another reason of the system's.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        cause = _system_error(error)
        if cause is None:
            raise
        advice = "make room on the disk" if cause.errno in _DISK_FULL else "choose another place"
        raise RollsightError(
            f"{path} could not be written ({cause.strerror or cause}): {advice}, everything written before it is intact"
        ) from error


def _system_error(error: BaseException) -> OSError | None:
    """The operating system's error behind `error`: itself, or a full disk that a library reported in its own way."""
    if isinstance(error, OSError):
        return error
    seen = error.__cause__ or error.__context__  # torch.save turns a full disk into a RuntimeError about positions
    while isinstance(error, Exception) and seen is not None:
        if isinstance(seen, OSError) and seen.errno in _DISK_FULL:
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def spell(rounds: Iterable[int]) -> str:
    """Numbers as people write them: `[1, 2, 3, 7]` is "1-3, 7", no numbers are "none"."""
    spans: list[list[int]] = []
    for number in sorted(rounds):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in spans) or "none"
