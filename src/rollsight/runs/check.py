"""Every file of a run against what its writer left: damaged, missing, foreign, or written before there were digests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rollsight.errors import RollsightError
from rollsight.runs.digests import digest_of
from rollsight.runs.layout import (
    DIGESTS,
    METADATA,
    SUFFIXES,
    TABLES,
    Kind,
    read_bytes,
    round_name,
    round_numbers,
    round_path,
    temporary_files,
    unreadable,
)
from rollsight.runs.metadata import parse_metadata
from rollsight.runs.reader import parse
from rollsight.runs.verified import OTHER_DIGEST, VerifiedFiles


@dataclass
class Checked:
    """What `check_run` found: names relative to the run folder, with the reason where there is one to give.

    run: the run folder.
    verified: files that are as they were written.
    damaged: files that differ from what was written.
    missing: files that were written and are gone.
    unreadable: files that cannot be read.
    foreign: files that training did not write.
    unverifiable: readable files of a version that kept no digests.
    """

    run: Path
    verified: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    foreign: dict[str, str] = field(default_factory=dict)
    unverifiable: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether everything that was written is there, and nothing else."""
        return not (self.damaged or self.missing or self.unreadable or self.foreign)


def check_run(run: Path) -> Checked:
    """Verify every file of a run folder; works also where the run cannot be opened."""
    found, metadata = Checked(run), dict[str, Any]()
    try:
        metadata, as_written = parse_metadata(run / METADATA, read_bytes(run / METADATA))
        if not as_written:
            found.damaged[METADATA] = "it was changed since rollsight wrote it"
        elif "digests" in metadata:
            found.verified.append(METADATA)
        else:
            found.unverifiable.append(METADATA)
    except RollsightError as error:
        reasons = found.unreadable if isinstance(error.__cause__, OSError) else found.damaged
        reasons[METADATA] = str(error)
    has_list = (run / DIGESTS).exists()
    from_round = (metadata.get("digests") or {}).get("from_round", 0 if has_list else None)
    if from_round is not None and not has_list:
        found.missing.append(DIGESTS)
    first = from_round if has_list else None
    files = VerifiedFiles(run, first)
    for kind in SUFFIXES:
        found.missing += [round_name(kind, round) for round in files.missing(kind)]
        _check_kind(found, kind, first, files.listed())
    return found


def _check_kind(found: Checked, kind: Kind, from_round: int | None, listed: Mapping[str, str]) -> None:
    run = found.run
    last = max(round_numbers(run, "rounds"), default=0)
    rounds = round_numbers(run, kind)
    for round in rounds:
        name, path = round_name(kind, round), round_path(run, kind, round)
        try:
            if name in listed:
                if digest_of(path) == listed[name]:
                    found.verified.append(name)
                else:
                    found.damaged[name] = OTHER_DIGEST
            elif round > last:
                continue  # of the round in flight
            elif from_round is not None and round >= from_round:
                found.foreign[name] = f"{DIGESTS} does not list it"
            elif (why := _implausible(run, kind, round)) is not None:
                found.damaged[name] = why
            else:
                found.unverifiable.append(name)
        except OSError as error:
            found.unreadable[name] = str(unreadable(path, error))
        except RollsightError as error:
            reasons = found.unreadable if isinstance(error.__cause__, OSError) else found.damaged
            reasons[name] = str(error)
    known = {round_path(run, kind, round).name for round in rounds} | {p.name for p in temporary_files(run / kind)}
    for name in sorted(set(os.listdir(run / kind)) - known if (run / kind).is_dir() else ()):
        found.foreign[f"{kind}/{name}"] = "it is not named as rollsight names files, and is not read"


def _implausible(run: Path, kind: Kind, round: int) -> str | None:
    """What is wrong with a file that has no digest, as far as the table itself shows it."""
    if kind not in TABLES:
        read_bytes(round_path(run, kind, round))
        return None
    table = parse(round_path(run, kind, round), read_bytes(round_path(run, kind, round)))
    if "round" in table.column_names and any(number != round for number in set(table["round"].to_pylist())):
        return "it is of another round"
    if kind == "records" and (summary := round_path(run, "rounds", round)).exists():
        (row,) = parse(summary, read_bytes(summary)).to_pylist() or [{}]
        expected = row.get("records")
        if expected is not None and expected != len(table):
            return f"it has {len(table):,} records, and the round had {expected:,}"
    return None
