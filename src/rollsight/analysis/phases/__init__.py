"""How did a behaviour form over the rounds, and which records taught it?"""

from typing import TYPE_CHECKING

from rollsight.lazy import at_first_use

if TYPE_CHECKING:
    from rollsight.analysis.phases.formation import Development as Development
    from rollsight.analysis.phases.formation import development as development

_HOMES = {"Development": "formation", "development": "formation"}

__all__ = [*_HOMES]
__getattr__ = at_first_use(__name__, _HOMES)
