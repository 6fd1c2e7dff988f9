"""What the doctor finds while a host trains: told once each, and rows of the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rollsight import runs
from rollsight.doctor.live import LiveDoctor, as_columns
from rollsight.watching import Watch


def report(
    doctor: LiveDoctor | None,
    round: int,
    summary: Mapping[str, Any],
    watch: Watch,
    writer: runs.RunWriter | None,
    log: Callable[[str], None] | None = None,
) -> None:
    """Let the doctor look at a finished round, before its summary is written. Nothing here stops training.

    log: takes a sentence to where the host logs; None: each finding is a Python warning.
    """
    if doctor is None:
        return
    found = watch.attempt("look of the doctor", doctor.look, round, summary)
    for one in found or ():
        told = f"the doctor finds {one.check} ({one.severity}): {one.wrong} Try: {one.tries[0]}"
        watch.warn(f"doctor: {one.check}", told, log=log)
    for check in doctor.failed:
        watch.warn(f"doctor: {check.check}", f"the doctor's check {check.check} {check.why}", "failed")
    if found and writer is not None and writer.last_round < round:
        watch.attempt("findings in the run folder", writer.write_findings, round, as_columns(round, found))


def text_log(logger: Any) -> Callable[[str], None] | None:
    """What writes a warning with Stable-Baselines3's logger; None where it has no output that takes texts."""
    takes_texts = any(hasattr(one, "write_sequence") for one in getattr(logger, "output_formats", ()))
    return logger.warn if takes_texts else None
