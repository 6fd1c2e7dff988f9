"""One file a page: a pure function from the runs and an address to what is shown, and the callbacks of its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dash import Dash

from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.pages import (
    behaviour,
    compare,
    culprits,
    files,
    findings,
    overview,
    prompts,
    record,
    round,
    runs,
    trust,
)


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        layout: what it shows at an address. Raises `RollsightError` for what cannot be shown.
        register: adds the callbacks of its parts to the app, once; their ids begin with the page's name.
        keys: where keys lead from an address: "previous" and "next".
    """

    layout: Callable[[Context, Address], Any]
    register: Callable[[Dash, Context], None] | None = None
    keys: Callable[[Context, Address], Mapping[str, Address]] | None = None


PAGES: Mapping[str, Page] = {
    "runs": Page(runs.layout, runs.register),
    "compare": Page(compare.layout, compare.register),
    "overview": Page(overview.layout, overview.register),
    "round": Page(round.layout, round.register, round.keys),
    "record": Page(record.layout, record.register, record.keys),
    "behaviour": Page(behaviour.layout, behaviour.register),
    "culprits": Page(culprits.layout, culprits.register),
    "findings": Page(findings.layout, findings.register),
    "trust": Page(trust.layout, trust.register),
    "prompts": Page(prompts.layout, prompts.register, prompts.keys),
    "files": Page(files.layout, files.register),
}
