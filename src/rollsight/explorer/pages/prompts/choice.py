"""What is chosen on the page, as its address says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from rollsight.errors import RollsightError
from rollsight.explorer.addresses import Address
from rollsight.explorer.completions import (
    FILTERS,
    ORDERS,
    Completions,
    Filter,
    Mask,
    Order,
    completions_of,
    token_columns,
)
from rollsight.explorer.context import Context


@dataclass(frozen=True, eq=False)
class Choice:
    """The page's state.

    Attributes:
        address: of the page, with every choice.
        round: number of the round.
        completions: of the round, with the scores of the target.
        target: whose scores are shown; None where nothing was scored.
        targets: those that the round has scores of.
        show: which completions are shown.
        order: which comes first.
        search: what a prompt or completion must have in it.
        shades: columns that tokens can be shaded by.
        shade: the column that they are shaded by; None for no shade.
        matching: (N,) the completions that pass the filter and the search.
        groups: the prompts of these, in order.
        group: the prompt that is open; None where none is shown.
    """

    address: Address
    round: int
    completions: Completions
    target: str | None
    targets: list[str]
    show: Filter
    order: Order
    search: str
    shades: list[str]
    shade: str | None
    matching: Mask
    groups: list[int]
    group: int | None

    def at(self, **query: object) -> Address:
        """The address with other choices."""
        return self.address.at(**query)

    def neighbour(self, by: int) -> Address | None:
        """The prompt that stands so many places further down the list."""
        if self.group is None or not 0 <= (place := self.groups.index(self.group) + by) < len(self.groups):
            return None
        return self.at(group=self.groups[place])


def choice(context: Context, address: Address) -> Choice:
    """What an address chooses; the newest round and the worst prompt by default.

    Raises:
        RollsightError: the run has no such round, or its records are no completions.
    """
    query = address.query
    numbers = context.reading.round_numbers(address.run)
    asked = query.get("round", "")
    round = int(asked) if asked.isdecimal() else numbers[-1]
    records = context.reading.records(address.run, round)
    if not {"prompt", "completion"} <= set(records.column_names):
        raise RollsightError(f"the records of {address.run} are steps and not completions: look at its rounds instead")
    targets = context.reading.targets(address.run, round)
    wanted = query.get("target") or str(context.summary(address.run, round).get("target") or "")
    target = wanted if wanted in targets else next(iter(targets), None)
    completions = completions_of(records, target, context.reading.metadata(address.run))
    show = cast(Filter, query["show"]) if query.get("show") in FILTERS else "all"
    order = cast(Order, query["order"]) if query.get("order") in ORDERS else "worst"
    search = query.get("search", "")
    matching = completions.matching(show, search)
    groups = completions.groups_in_order(matching, order)
    group = int(query["group"]) if query.get("group", "").isdecimal() else None
    shades = token_columns(records)
    usual = next((name for name in ("token_scores", "token_advantages") if name in shades), next(iter(shades), None))
    shade = query.get("shade", usual)
    return Choice(
        address=address.at(round=round),
        round=round,
        completions=completions,
        target=target,
        targets=targets,
        show=show,
        order=order,
        search=search,
        shades=shades,
        shade=shade if shade in shades else None,
        matching=matching,
        groups=groups,
        group=group if group in groups else next(iter(groups), None),
    )
