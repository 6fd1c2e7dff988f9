"""Why do the bottom records of a round hurt? Their advantages against Monte-Carlo ones."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollsight.analysis.diagnosis.round import Diagnosis as Diagnosis
    from rollsight.analysis.diagnosis.round import diagnose_round as diagnose_round
    from rollsight.analysis.diagnosis.round_data import RoundData as RoundData

# Where each public name lives. Imported at first use: they need torch, Stable-Baselines3 or SciPy.
_HOMES = {"Diagnosis": "round", "RoundData": "round_data", "diagnose_round": "round"}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
