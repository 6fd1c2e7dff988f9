"""A behaviour by a query over a run of either kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollsight.analysis.culprits.behaviour import MOST_PAIRS, Behaviour, of_step_query
from rollsight.runs import Run, is_language

if TYPE_CHECKING:
    from rollsight.analysis.culprits.language import Completions


def of_query(
    run: Run, query: str, *, most: int | None = None, name: str | None = None, model: str | None = None
) -> Behaviour | Completions:
    """The behaviour of the records that a query over the run selects.

    The query gives the columns round, env and step, of a language model's run round and episode, or there any texts as
    prompt and completion; or whole rows with them. most: so many are used, drawn at random where there are more; None:
    1,000, of completions 100. model: a language model's base, where it is not where the run says.

    Raises:
        RollsightError: the query is wrong, lacks a column or selects nothing.
    """
    if not is_language(run.metadata):
        return of_step_query(run, query, most=MOST_PAIRS if most is None else most, name=name)
    from rollsight.analysis.culprits.language import MOST_COMPLETIONS, of_language_query

    return of_language_query(run, query, most=MOST_COMPLETIONS if most is None else most, name=name, model=model)
