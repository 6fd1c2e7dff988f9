"""Whether a run holds the snapshots that replays start from."""

from rollsight.errors import RollsightError
from rollsight.runs import Run


def check_snapshots(run: Run, need: str) -> None:
    """`RollsightError` where the run has no snapshot. need: who asks for them, as "diagnose needs"."""
    if run.snapshot_rounds:
        return
    host = str(run.metadata.get("host", "")).partition(" ")[0]
    advice = (
        "rounds of a language model cannot be replayed" if host in ("rollsight", "trl") else "train with --snapshots"
    )
    raise RollsightError(f"{run.path} has no snapshots, which {need}: {advice}")
