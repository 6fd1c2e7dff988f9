"""`SHA256SUMS`: the digest of every file of a run, which `sha256sum --check --ignore-missing SHA256SUMS` reads too.

The writer adds a round's lines before the round's summary appears, and a later file's line before that file does; when
it has appeared a comment says so. What is complete is listed, and what no comment follows is in flight. Lines are only
added; a file has a comment before the writer removes it, and continuing a run writes the list anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rollsight.runs.layout import DIGESTS, PLAIN, read_bytes, whole_file

SELF = "sha256"  # the entry of `run.json` with the digest of the others
_LINE = re.compile(r"([0-9a-f]{64})  ((\w+)/round-(\d{6,})\.\w+)")
_COMPLETE = re.compile(r"# complete up to round \d+")
_REMOVED = re.compile(r"# removed (\w+/round-\d{6,}\.\w+)")


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
    """The content of the list of digests.

    files: name -> digest, of the files that the writer has not removed.
    written: those of them of which the writer has said that they are there.
    removed: names of the files that the writer has removed.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    written: Set[str] = frozenset()
    removed: Set[str] = frozenset()


def round_of(name: str) -> int:
    """The round of a listed file."""
    return int(name.rpartition("round-")[2].partition(".")[0])


def read_digests(run: Path) -> Listed:
    """The list of a run; empty where it has none."""
    if not (run / DIGESTS).exists():
        return Listed()
    files, written, removed = dict[str, str](), set[str](), set[str]()
    text = read_bytes(run / DIGESTS).decode("utf-8", "replace")
    for line in text.split("\n")[:-1]:  # behind the last line break stands nothing, or what is being written
        if match := _LINE.fullmatch(line):
            files[match[2]] = match[1]
            removed.discard(match[2])
        elif match := _REMOVED.fullmatch(line):
            files.pop(match[1], None)
            removed.add(match[1])
        elif _COMPLETE.fullmatch(line):
            written = set(files)
    return Listed(files, written & files.keys(), removed)


def write_digests(run: Path, files: Mapping[str, str], complete: int) -> None:
    """Write the list anew: files that are there, name -> digest, of the rounds up to `complete`."""
    with whole_file(run / DIGESTS) as temporary:
        lines = [*map(_line, files.items()), _complete(complete)]
        temporary.write_text("".join(lines), "utf-8", newline="\n")


def go_on_with_digests(run: Path, last: int) -> None:
    """Write the list of digests anew, of the rounds up to `last`, without what a killed writer did not finish."""
    listed = read_digests(run)
    for name in listed.removed:
        (run / name).unlink(missing_ok=True)
    names = [name for name in listed.files if round_of(name) <= last]
    there = {name: listed.files[name] for name in names if name in listed.written or (run / name).exists()}
    write_digests(run, there, last)


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
        """Say that all that is listed is there, up to this round. Not synced: without this line what was added last
        counts as in flight."""
        self._append([_complete(round)], sync=False)

    def removed(self, name: str) -> None:
        """Say that a file is removed on purpose."""
        self._append([f"# removed {name}\n"])

    def cut(self, size: int) -> None:
        """Take back what was added since the list had this size."""
        if self.size > size:
            os.truncate(self._path, size)

    def _append(self, lines: Iterable[str], sync: bool = True) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | PLAIN, 0o666)
        with os.fdopen(descriptor, "a", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
            file.flush()
            if sync:
                os.fsync(descriptor)


def _line(entry: tuple[str, str]) -> str:
    name, digest = entry
    return f"{digest}  {name}\n"


def _complete(round: int) -> str:
    return f"# complete up to round {round}\n"
