"""How did a behaviour form over the rounds, and which records taught it?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollsight.analysis.phases.formation import Development as Development
    from rollsight.analysis.phases.formation import development as development

# Where each public name lives. Imported at first use: they need torch, Stable-Baselines3 or SciPy.
_HOMES = {"Development": "formation", "development": "formation"}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
