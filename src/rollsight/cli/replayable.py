"""Whether a run holds the snapshots that replays start from."""

from rollsight.errors import RollsightError
from rollsight.runs import Run, is_language


def check_snapshots(run: Run, need: str) -> None:
    """`RollsightError` where the run has no snapshot. need: who asks for them, as "diagnose needs"."""
    if run.snapshot_rounds:
        return
    language = is_language(run.metadata)
    advice = "rounds of a language model are not replayed by it" if language else "train with --snapshots"
    raise RollsightError(f"{run.path} has no snapshots, which {need}: {advice}")
