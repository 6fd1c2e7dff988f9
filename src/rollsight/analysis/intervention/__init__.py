"""What would a round have done without some of its records?"""

from typing import TYPE_CHECKING

from rollsight.lazy import at_first_use

if TYPE_CHECKING:
    from rollsight.analysis.intervention.arms import Intervention as Intervention
    from rollsight.analysis.intervention.run import InterventionSettings as InterventionSettings
    from rollsight.analysis.intervention.run import run_intervention as run_intervention

_HOMES = {"Intervention": "arms", "InterventionSettings": "run", "run_intervention": "run"}

__all__ = [*_HOMES]
__getattr__ = at_first_use(__name__, _HOMES)
