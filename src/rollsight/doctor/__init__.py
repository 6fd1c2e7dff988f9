"""What is wrong with a run, and where: checks of data, advantages, values, policy, reward and texts."""

from typing import TYPE_CHECKING

from rollsight.lazy import at_first_use

if TYPE_CHECKING:
    from rollsight.doctor.examination import Examined as Examined
    from rollsight.doctor.examination import examine as examine
    from rollsight.doctor.examination import examine_fully as examine_fully
    from rollsight.doctor.finding import Finding as Finding

_HOMES = {"Examined": "examination", "Finding": "finding", "examine": "examination", "examine_fully": "examination"}

__all__ = [*_HOMES]
__getattr__ = at_first_use(__name__, _HOMES)
