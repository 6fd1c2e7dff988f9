"""What would a round have done without some of its records?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollsight.analysis.intervention.arms import Intervention as Intervention
    from rollsight.analysis.intervention.run import InterventionSettings as InterventionSettings
    from rollsight.analysis.intervention.run import run_intervention as run_intervention

# Where each public name lives. Imported at first use: they need torch, Stable-Baselines3 or SciPy.
_HOMES = {"Intervention": "arms", "InterventionSettings": "run", "run_intervention": "run"}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
