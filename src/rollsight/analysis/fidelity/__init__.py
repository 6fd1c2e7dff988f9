"""Do the scores predict what training on other records ends in?"""

from typing import TYPE_CHECKING

from rollsight.lazy import at_first_use

if TYPE_CHECKING:
    from rollsight.analysis.fidelity.measure import Fidelity as Fidelity
    from rollsight.analysis.fidelity.measure import measure_fidelity as measure_fidelity
    from rollsight.analysis.fidelity.round import FidelitySettings as FidelitySettings

_HOMES = {"Fidelity": "measure", "FidelitySettings": "round", "measure_fidelity": "measure"}

__all__ = [*_HOMES]
__getattr__ = at_first_use(__name__, _HOMES)
