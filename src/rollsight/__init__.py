"""Rollsight: data attribution for online reinforcement learning.

    import rollsight as rs
    scores = rs.score_records(policy, records, target=rs.targets.Return(), objective=rs.objectives.PPO())

See `score_records` for what the numbers mean. Hosts are attached through `rollsight.adapters`, run folders read through
`rollsight.runs`.
"""

from rollsight import objectives, selection, targets
from rollsight.errors import RollsightError
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.scoring import Scores, TrustLine, score_records, trust_line

__version__ = "0.1.0"

__all__ = [
    "Evaluation",
    "Policy",
    "Records",
    "RollsightError",
    "Scores",
    "TrustLine",
    "objectives",
    "score_records",
    "selection",
    "targets",
    "trust_line",
]
