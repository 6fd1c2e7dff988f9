"""What is wrong with a run, and where: `examine(run)`. The checks are in `rollsight.doctor`, below the hosts that make
them while they train."""

from rollsight.doctor.examination import Examined, examine, examine_fully
from rollsight.doctor.finding import Finding, Where

__all__ = ["Examined", "Finding", "Where", "examine", "examine_fully"]
