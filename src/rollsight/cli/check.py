"""`rollsight check`: are the files of a run as they were written?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from rollsight import runs
from rollsight.cli import output
from rollsight.errors import RollsightError
from rollsight.runs.check import Checked, check_run


def check(
    paths: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...", help_behavior_hint="(required)")],
    /,
    *,
    json: bool = False,
) -> None:
    """Verify every file of runs against the digests that training wrote next to them.

    - damaged: not as it was written; missing: written, and gone.
    - foreign: a file that training did not write.
    - unverifiable: written by a version of rollsight that kept no digests; it can be read.

    Exits with 1 unless everything is there as it was written. Without rollsight:
    cd RUN && sha256sum --check --ignore-missing SHA256SUMS

    Example: rollsight check runs/lander

    Args:
        paths: Run folders, or folders of run folders.
        json: Print JSON instead.
    """
    if not paths:
        raise RollsightError("there is nothing to check: name at least one run folder")
    folders = [run for path in paths for run in ([path] if runs.is_run(path) else runs.find_runs(path) or [path])]
    for folder in folders:
        if not runs.is_run(folder):
            runs.open(folder)  # says what it is instead
    found = [check_run(folder) for folder in folders]
    if json:
        output.print_json([{**vars(one), "whole": one.whole} for one in found])
    else:
        console = output.console()
        for one in found:
            show(one, console)
    if wrong := [one for one in found if not one.whole]:
        raise RollsightError(
            f"{len(wrong)} of {len(found)} runs are not as they were written: restore the files named above, or move "
            "them aside"
        )


def show(found: Checked, console: Console) -> None:
    """Print what was found in one run: a line, and one for every file that is not as it should be."""
    kinds: dict[str, Mapping[str, str]] = {
        "damaged": found.damaged,
        "missing": dict.fromkeys(found.missing, ""),
        "unreadable": found.unreadable,
        "foreign": found.foreign,
    }
    counts = [f"{len(files)} {kind}" for kind, files in kinds.items() if files]
    if found.unverifiable:
        counts.append(f"{len(found.unverifiable)} unverifiable, of a version that kept no digests")
    output.print_text(console, f"{found.run}: {', '.join([f'{len(found.verified)} files verified', *counts])}")
    for kind, files in kinds.items():
        _list(console, kind, [f"{name} ({why})" if why else name for name, why in files.items()])


def _list(console: Console, kind: str, lines: Sequence[str]) -> None:
    for line in lines:
        output.print_text(console, f"  {kind}: {line}")
