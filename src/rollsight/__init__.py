"""Rollsight: data attribution for online reinforcement learning.

    import rollsight as rs
    scores = rs.score_records(policy, records, target=rs.targets.Return(), objective=rs.objectives.PPO())

See `score_records` for what the numbers mean. Hosts are attached through `rollsight.adapters`, run folders read through
`rollsight.runs`.
"""

from typing import TYPE_CHECKING

from rollsight.lazy import at_first_use

if TYPE_CHECKING:
    from rollsight import language as language
    from rollsight import objectives as objectives
    from rollsight import selection as selection
    from rollsight import targets as targets
    from rollsight.errors import RollsightError as RollsightError
    from rollsight.policy import Evaluation as Evaluation
    from rollsight.policy import Policy as Policy
    from rollsight.records import Records as Records
    from rollsight.scoring import Forward as Forward
    from rollsight.scoring import Scores as Scores
    from rollsight.scoring import TrustLine as TrustLine
    from rollsight.scoring import score_records as score_records
    from rollsight.scoring import trust_line as trust_line
    from rollsight.snapshot import Snapshot as Snapshot
    from rollsight.update import UpdateRule as UpdateRule

__version__ = "0.1.0"

_HOMES = {
    "Evaluation": "policy",
    "Forward": "scoring",
    "Policy": "policy",
    "Records": "records",
    "RollsightError": "errors",
    "Scores": "scoring",
    "Snapshot": "snapshot",
    "TrustLine": "scoring",
    "UpdateRule": "update",
    "score_records": "scoring",
    "trust_line": "scoring",
    **dict.fromkeys(("language", "objectives", "selection", "targets")),
}

__all__ = [*_HOMES]
__getattr__ = at_first_use(__name__, {**_HOMES, "runs": None})  # run folders need an extra


def __dir__() -> list[str]:
    return sorted(__all__)
