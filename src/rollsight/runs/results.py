"""Where results of analyses of a run lie: next to its folder, which only its writer writes to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollsight.runs.layout import whole_file


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


def keep_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write `result.json` into a folder of `results_folder`, whole or not at all; an earlier one is replaced.

    Raises:
        RollsightError: the file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "result.json") as temporary:
        temporary.write_text(json.dumps(result), "utf-8")
