"""Which rollouts taught this behaviour? Every record of every round scored for it, gathered, and checked by replays."""

from typing import TYPE_CHECKING

from rollsight.lazy import at_first_use

if TYPE_CHECKING:
    from rollsight.analysis.culprits.behaviour import Behaviour as Behaviour
    from rollsight.analysis.culprits.behaviour import of_records as of_records
    from rollsight.analysis.culprits.groups import gather as gather
    from rollsight.analysis.culprits.language import Completions as Completions
    from rollsight.analysis.culprits.language import of_completions as of_completions
    from rollsight.analysis.culprits.language import of_pairs as of_pairs
    from rollsight.analysis.culprits.language import read_pairs as read_pairs
    from rollsight.analysis.culprits.of_run import Culprits as Culprits
    from rollsight.analysis.culprits.of_run import Settings as Settings
    from rollsight.analysis.culprits.of_run import culprits_of as culprits_of
    from rollsight.analysis.culprits.queries import of_query as of_query
    from rollsight.analysis.culprits.replays import check as check
    from rollsight.analysis.culprits.scores import score_rounds as score_rounds

_HOMES = {
    "Behaviour": "behaviour",
    "Completions": "language",
    "Culprits": "of_run",
    "Settings": "of_run",
    "check": "replays",
    "culprits_of": "of_run",
    "gather": "groups",
    "of_completions": "language",
    "of_pairs": "language",
    "of_query": "queries",
    "of_records": "behaviour",
    "read_pairs": "language",
    "score_rounds": "scores",
}

__all__ = [*_HOMES]
__getattr__ = at_first_use(__name__, _HOMES)
