"""`--trust`: the one option of every command that loads snapshots."""

from pathlib import Path


def trust_run(run: Path, trust: bool) -> None:
    """Where `--trust` was given, load the run's pickled snapshots whoever wrote them, in worker processes too."""
    if trust:
        from rollsight.snapshot import trust_folder  # here: it loads torch

        trust_folder(run)
