"""What a run says about the discounts of its advantages."""

from __future__ import annotations

from typing import Any

from rollsight.errors import RollsightError
from rollsight.runs import Run


def discounts_of(run: Run, purpose: str) -> dict[str, float]:
    """`gamma` and `gae_lambda`. purpose: what cannot be done without them, for the error.

    Raises `RollsightError` where the run's metadata hold no such numbers.
    """
    settings: Any = run.metadata.get("settings")
    found = {name: settings.get(name) if isinstance(settings, dict) else None for name in ("gamma", "gae_lambda")}
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise RollsightError(f"{run.path} does not say its {name} (it has {value!r} there), so {purpose}")
    return {name: float(value) for name, value in found.items()}
