"""Scoring: `score_records`, its backends (one file each), and the trust line."""

from rollsight.scoring.forward import Forward
from rollsight.scoring.score import score_records
from rollsight.scoring.scores import Scores
from rollsight.scoring.trust import TrustLine, trust_line

__all__ = ["Forward", "Scores", "TrustLine", "score_records", "trust_line"]
