"""Do the scores predict what training on other records ends in?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollsight.analysis.fidelity.measure import Fidelity as Fidelity
    from rollsight.analysis.fidelity.measure import measure_fidelity as measure_fidelity
    from rollsight.analysis.fidelity.round import FidelitySettings as FidelitySettings

# Where each public name lives. Imported at first use: they need torch, Stable-Baselines3 or SciPy.
_HOMES = {"Fidelity": "measure", "FidelitySettings": "round", "measure_fidelity": "measure"}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
