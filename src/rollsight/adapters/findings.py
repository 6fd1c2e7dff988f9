"""What the doctor finds while a host trains: a warning each, and rows of the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rollsight import runs
from rollsight.doctor.live import LiveDoctor, as_columns
from rollsight.watching import Watch


def report(
    doctor: LiveDoctor | None, round: int, summary: Mapping[str, Any], watch: Watch, writer: runs.RunWriter | None
) -> None:
    """Let the doctor look at a finished round, before its summary is written. Nothing here stops training."""
    if doctor is None:
        return
    found = watch.attempt("look of the doctor", doctor.look, round, summary)
    for one in found or ():
        told = f"the doctor finds {one.check} ({one.severity}): {one.wrong} Try: {one.tries[0]}"
        watch.warn(f"doctor: {one.check}", told)
    if found and writer is not None and writer.last_round < round:
        watch.attempt("findings in the run folder", writer.write_findings, round, as_columns(round, found))
