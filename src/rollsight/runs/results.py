"""Where results of analyses of a run lie: next to its folder, which only its writer writes to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def results_folder(run: Path, analysis: str, detail: str) -> Path:
    """Where the results of an analysis are kept, as `runs/lander.results/fidelity/round-10` for `runs/lander`."""
    run = run.resolve()
    return run.with_name(f"{run.name}.results") / analysis / detail


def stored_results(run: Path, analysis: str) -> dict[str, dict[str, Any]]:
    """What was kept of an analysis: detail -> its `result.json`. What cannot be read is left out."""
    found = {}
    for path in sorted(results_folder(run, analysis, "").glob("*/result.json")):
        try:
            result = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(result, dict):
            found[path.parent.name] = result
    return found
