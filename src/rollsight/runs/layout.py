"""Where things lie in a run folder, and how a file gets there whole or not at all."""

import errno
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import lock_descriptor, unlock_descriptor

from rollsight.errors import RollsightError

Kind = Literal["records", "rounds", "evaluations", "findings", "snapshots", "policies", "checkpoints"]

FORMAT = 1  # raised when a reader of the older layout could misread a newer folder
METADATA = "run.json"
LOCK = ".lock"
DIGESTS = "SHA256SUMS"
# For `os.open`: follow no symbolic link (Windows cannot say so), and change no line end (as only Windows would).
PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_TRIES, _BETWEEN_TRIES = 4, 0.002  # of taking the lock; seconds
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What a write to an open file fails with; a library may report it in its own way.
_WRITE_ERRORS = (*_DISK_FULL, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)
TABLES: tuple[Kind, ...] = ("records", "rounds", "evaluations", "findings")
SUFFIXES: dict[Kind, str] = {
    "rounds": ".parquet",  # first: where files are removed, a round stops being complete before it loses its records
    "records": ".parquet",
    "evaluations": ".parquet",
    "findings": ".parquet",
    "snapshots": ".pt",
    "policies": ".pt",
    "checkpoints": ".pt",
}


def is_run(path: str | Path) -> bool:
    """Whether the path is a run folder, that is, holds a `run.json`."""
    return (Path(path) / METADATA).is_file()


def is_being_written(run: Path) -> bool:
    """Whether a process holds the run for writing now. Takes the lock for a moment, for which others wait."""
    try:
        with open(run / LOCK, "rb") as file:
            if free := take_lock(file.fileno()):
                unlock_descriptor(file.fileno())
            return not free
    except OSError:
        return False  # no lock file: of another machine, or never written to by this version


def take_lock(descriptor: int) -> bool:
    """Lock an open file for this process alone; whether that went. Who only looks whether somebody writes holds the
    lock for some microseconds."""
    for _ in range(_TRIES):
        if lock_descriptor(descriptor, blocking=False):
            return True
        time.sleep(_BETWEEN_TRIES)
    return False


def change_token(run: Path) -> str:
    """Text that is another one when something was added to a run, or it was continued or replaced. Three looks at the
    file system."""
    parts = []
    for name in (METADATA, DIGESTS, "rounds"):
        try:
            found = os.stat(run / name)
            parts.append(f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}")
        except OSError:
            parts.append("")
    return ".".join(parts)


def find_runs(folder: Path) -> list[Path]:
    """The run folders directly inside `folder`, by name; none where there is no such folder."""
    return sorted(child for child in folder.iterdir() if is_run(child)) if folder.is_dir() else []


def round_path(run: Path, kind: Kind, round: int) -> Path:
    return run / round_name(kind, round)


def round_name(kind: Kind, round: int) -> str:
    """A file's path inside the run, with forward slashes: its name in the list of digests."""
    return f"{kind}/round-{round:06d}{SUFFIXES[kind]}"


def round_numbers(run: Path, kind: Kind) -> list[int]:
    """The rounds that have a file of this kind, ascending. Temporary and foreign files do not count."""
    # A number has one name: a second one, with more zeros, would count its round twice.
    pattern = re.compile(rf"round-(\d{{6}}|[1-9]\d{{6,}}){re.escape(SUFFIXES[kind])}")
    names = os.listdir(run / kind) if (run / kind).is_dir() else []
    return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))


def temporary_files(folder: Path) -> list[Path]:
    """What killed writers left in a run's folder: the temporary files of `whole_file` there."""
    names = os.listdir(folder) if folder.is_dir() else []
    return [folder / name for name in names if _TEMPORARY.fullmatch(name)]


_TEMPORARY = re.compile(r"\.(round-\d{6,}\.\w+|run\.json|SHA256SUMS)(\.[0-9a-f]{16})?\.tmp")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file that appears under its name complete and on disk, or does not appear.

    Yields the temporary path to write to, an empty file in the same folder. When the block succeeds the file is synced
    and renamed; when it fails, for whatever reason, nothing is left behind. A link that somebody planted under either
    name is not followed.

    Raises:
        RollsightError: the disk is full, or the file cannot be written for another reason of the system's.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # the rename stays on one file system
    descriptor = None
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | PLAIN, 0o666)
        yield temporary
        os.fsync(descriptor)
        if not os.path.samestat(os.fstat(descriptor), os.lstat(temporary)):
            raise RollsightError(f"{path} could not be written (somebody replaced {temporary}): choose another place")
        os.close(descriptor)  # Windows neither renames nor removes an open file
        descriptor = None
        os.replace(temporary, path)
    except BaseException as error:
        if descriptor is not None:
            os.close(descriptor)
        temporary.unlink(missing_ok=True)
        cause = _system_error(error)
        if cause is None:
            raise
        raise RollsightError(
            f"{path} could not be written ({cause.strerror or cause}): {_advice(cause)}, everything written before it "
            "is intact"
        ) from error


def _advice(error: OSError) -> str:
    if error.errno in _DISK_FULL:
        return "make room on the disk"
    return "raise the limit on file sizes (ulimit -f)" if error.errno == errno.EFBIG else "choose another place"


def _system_error(error: BaseException) -> OSError | None:
    """The operating system's error behind `error`: itself, or that of a write that a library reported in its own
    way."""
    if isinstance(error, OSError):
        return error
    seen = error.__cause__ or error.__context__  # torch.save turns a full disk into a RuntimeError about positions
    while isinstance(error, Exception) and seen is not None:
        if isinstance(seen, OSError) and seen.errno in _WRITE_ERRORS:
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def read_bytes(path: Path) -> bytes:
    """The content of a file of a run.

    Raises:
        RollsightError: it may not be read, or is gone: neither is damage.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> RollsightError:
    """What to say of a file that the system does not let us read."""
    match error:
        case FileNotFoundError():
            return RollsightError(
                f"{path} is gone since the folder was listed: read again if the run is being replaced"
            )
        case PermissionError():
            return RollsightError(f"{path} may not be read (permission denied): ask its owner for access, or change it")
    return RollsightError(f"{path} could not be read ({error.strerror or error}): try again")


def spell(rounds: Iterable[int]) -> str:
    """Numbers as people write them: `[1, 2, 3, 7]` is "1-3, 7", no numbers are "none"."""
    spans: list[list[int]] = []
    for number in sorted(rounds):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in spans) or "none"
