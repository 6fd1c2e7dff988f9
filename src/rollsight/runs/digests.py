"""`SHA256SUMS`: the digest of every file of a run, which `sha256sum --check --ignore-missing SHA256SUMS` reads too.

The writer adds a round's lines before the round's summary appears, and when it has appeared a comment that says so: a
complete round is listed, and one that no comment calls complete is in flight. Lines are only added; a file that
the writer removed has a comment for it, and continuing a run after an earlier round writes the list anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rollsight.runs.layout import DIGESTS, read_bytes, whole_file

SELF = "sha256"  # the entry of `run.json` with the digest of the others
_LINE = re.compile(r"([0-9a-f]{64})  ((\w+)/round-(\d{6,})\.\w+)")
_COMPLETE = re.compile(r"# complete up to round (\d+)")
_REMOVED = re.compile(r"# removed (\S+)")


def digest_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_metadata(metadata: Mapping[str, Any]) -> str:
    """SHA-256 of the entries of `run.json` other than `sha256`: compact JSON, keys sorted, as UTF-8."""
    others = {name: value for name, value in metadata.items() if name != SELF}
    return hashlib.sha256(json.dumps(others, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Listed:
    """The list's content. files: name -> digest, of those that the writer has not removed.

    complete: the last round of which the writer has said that all of it is there.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    complete: int = 0

    def up_to(self, last: int) -> Listed:
        """What it says of the rounds up to `last`."""
        files = {name: digest for name, digest in self.files.items() if round_of(name) <= last}
        return Listed(files, min(self.complete, last))


def round_of(name: str) -> int:
    """The round of a listed file."""
    return int(name.rpartition("round-")[2].partition(".")[0])


def read_digests(run: Path) -> Listed:
    """The list of a run; empty where it has none."""
    if not (run / DIGESTS).exists():
        return Listed()
    files, complete = dict[str, str](), 0
    text = read_bytes(run / DIGESTS).decode("utf-8", "replace")
    for line in text.split("\n")[:-1]:  # behind the last line break stands nothing, or what is being written
        if match := _LINE.fullmatch(line):
            files[match[2]] = match[1]
        elif match := _REMOVED.fullmatch(line):
            files.pop(match[1], None)
        elif match := _COMPLETE.fullmatch(line):
            complete = max(complete, int(match[1]))
    return Listed(files, complete)


def write_digests(run: Path, listed: Listed) -> None:
    """Write the list anew."""
    with whole_file(run / DIGESTS) as temporary:
        lines = [*map(_line, listed.files.items()), _complete(listed.complete)]
        temporary.write_text("".join(lines), "utf-8")


class DigestList:
    """The list, open for adding lines."""

    def __init__(self, run: Path) -> None:
        self._path = run / DIGESTS

    @property
    def size(self) -> int:
        """In bytes; `cut` takes it."""
        return self._path.stat().st_size if self._path.exists() else 0

    def add(self, listed: Mapping[str, str]) -> None:
        """Add files, on disk when this returns."""
        self._append(map(_line, listed.items()))

    def complete(self, round: int) -> None:
        """Say that all of a round is there. Not synced: without this line the round counts as in flight."""
        self._append([_complete(round)], sync=False)

    def removed(self, name: str) -> None:
        """Say that a file was removed on purpose."""
        self._append([f"# removed {name}\n"])

    def cut(self, size: int) -> None:
        """Take back what was added since the list had this size."""
        if self.size > size:
            os.truncate(self._path, size)

    def _append(self, lines: Iterable[str], sync: bool = True) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            if sync:
                os.fsync(descriptor)


def _line(entry: tuple[str, str]) -> str:
    name, digest = entry
    return f"{digest}  {name}\n"


def _complete(round: int) -> str:
    return f"# complete up to round {round}\n"
