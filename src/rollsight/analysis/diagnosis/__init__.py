"""Why do the bottom records of a round hurt? Their advantages against Monte-Carlo ones."""

from typing import TYPE_CHECKING

from rollsight.lazy import at_first_use

if TYPE_CHECKING:
    from rollsight.analysis.diagnosis.round import Diagnosis as Diagnosis
    from rollsight.analysis.diagnosis.round import diagnose_round as diagnose_round
    from rollsight.analysis.diagnosis.round_data import RoundData as RoundData

_HOMES = {"Diagnosis": "round", "RoundData": "round_data", "diagnose_round": "round"}

__all__ = [*_HOMES]
__getattr__ = at_first_use(__name__, _HOMES)
