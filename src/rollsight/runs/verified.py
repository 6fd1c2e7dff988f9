"""The files of a run as its writer left them: digests compared where a file is read, and files that are gone or new."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from rollsight.errors import RollsightError
from rollsight.runs.digests import Listed, digest_of, read_digests, round_of
from rollsight.runs.layout import DIGESTS, Kind, read_bytes, round_name, round_numbers, round_path, unreadable

# Files of this process that agreed with their digest, by path: what they were then.
_agreed: dict[Path, tuple[int, int, int, str]] = {}


class VerifiedFiles:
    """Reads files of a run and compares them with `SHA256SUMS`.

    from_round: the first round that has digests; None for a run of an earlier version, whose files are as they are.
    """

    def __init__(self, run: Path, from_round: int | None) -> None:
        self._run, self._from = run, from_round
        self._now = Listed()
        self._seen: tuple[int, int] | None = None

    def content(self, kind: Kind, round: int) -> bytes:
        """A file's bytes.

        Raises:
            RollsightError: its digest is another one, or it cannot be read.
        """
        path = round_path(self._run, kind, round)
        content = read_bytes(path)
        expected = self.listed().get(round_name(kind, round))
        if expected is not None and hashlib.sha256(content).hexdigest() != expected:
            raise damaged(path, OTHER_DIGEST)
        return content

    def check(self, kind: Kind, rounds: Iterable[int]) -> None:
        """Compare files that something else will read; a file that did not change since then is compared once.

        Raises:
            RollsightError: as `content`.
        """
        listed = self.listed()
        for round in rounds:
            path, expected = round_path(self._run, kind, round), listed.get(round_name(kind, round))
            try:
                found = os.stat(path)
                state = (found.st_mtime_ns, found.st_size, found.st_ino, expected or "")
                if _agreed.get(path) == state:
                    continue
                if expected is None:
                    path.open("rb").close()  # may it be read?
                elif digest_of(path) != expected:
                    raise damaged(path, OTHER_DIGEST)
            except OSError as error:
                raise unreadable(path, error) from error
            _agreed[path] = state

    def missing(self, kind: Kind) -> list[int]:
        """The rounds whose file of this kind was written and is gone."""
        return sorted(self._written(kind) - set(round_numbers(self._run, kind)))

    def unlisted(self, kind: Kind, rounds: Iterable[int]) -> list[int]:
        """Those of the rounds whose file of this kind should be listed and is not: it cannot be verified."""
        if self._from is None:
            return []
        listed = self.listed()
        return [round for round in rounds if round >= self._from and round_name(kind, round) not in listed]

    def listed(self) -> Mapping[str, str]:
        """Name -> digest, read again where the list has changed."""
        return self._list().files

    def _list(self) -> Listed:
        try:
            found = os.stat(self._run / DIGESTS)
        except FileNotFoundError:
            return Listed()
        if self._seen != (state := (found.st_mtime_ns, found.st_size)):
            self._now, self._seen = read_digests(self._run), state
        return self._now

    def _written(self, kind: Kind) -> set[int]:
        if self._from is not None:
            return {round_of(name) for name in self._list().written if name.startswith(f"{kind}/")}
        # What the other files of an earlier version's run say.
        complete, recorded = (set(round_numbers(self._run, k)) for k in ("rounds", "records"))
        if kind == "rounds":
            return complete | {round for round in recorded if round < max(complete, default=0)}
        return complete if kind == "records" and recorded else set()


OTHER_DIGEST = f"its digest is not the one in {DIGESTS}"


def damaged(path: Path, why: str) -> RollsightError:
    """A file is not what was written."""
    return RollsightError(f"{path} is damaged ({why}): move it aside, the other files of the run are intact")
