"""What is wrong with the run: the doctor's findings, worst first, each with a link to what shows it."""

from __future__ import annotations

import shlex
from functools import lru_cache
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, html
from dash.exceptions import PreventUpdate

from rollsight.doctor import Examined, Finding, examine_fully, language
from rollsight.errors import RollsightError
from rollsight.explorer import components
from rollsight.explorer.addresses import Address, address_of
from rollsight.explorer.context import Context
from rollsight.explorer.theme import number
from rollsight.runs import is_language

_AT_ONCE = 100  # rounds up to which a run is examined without being asked
_COLOURS = {"severe": "red", "warning": "orange", "note": "gray"}


def layout(context: Context, address: Address) -> Any:
    """The findings; of a long run, on request."""
    rounds = context.reading.round_numbers(address.run)
    top = components.heading("Findings", "What is wrong with the run, where it shows, and what to try. Worst first.")
    if not rounds:
        return [top, components.empty("No round is complete yet", "The checks need at least one round.")]
    shown: Any = html.Div()
    if len(rounds) <= _AT_ONCE:
        shown = found(context, address.run)
    button = dmc.Button(
        "Examine again" if len(rounds) <= _AT_ONCE else "Examine", id="findings-examine", size="xs", mb="sm"
    )
    return [top, button, html.Div(id="findings-list", children=shown)]


def found(context: Context, name: str) -> Any:
    """Every finding as a card, and what could not be looked at."""
    examined = _examined(context, name, context.reading.token(name))
    cards = [_card(context, name, finding) for finding in examined.findings]
    if not cards:
        cards = [components.empty("Nothing was found", "That is no proof: each check has faults that it cannot see.")]
    read, of = examined.read
    left = [dmc.Text(f"Records of {read:,} of {of:,} rounds were read.", size="xs", c="dimmed")]
    other = set() if is_language(context.reading.metadata(name)) else {check.name for check in language.CHECKS}
    missing: dict[str, list[str]] = {}
    for one in examined.not_looked_at:
        if one.check not in other:
            missing.setdefault(one.why, []).append(one.check)
    if missing:
        rows = [html.Li(components.text_of(f"{why}: {', '.join(checks)}")) for why, checks in missing.items()]
        count = sum(map(len, missing.values()))
        left.append(
            html.Details(
                [html.Summary(f"{count} checks were not made"), html.Ul(rows, className="rs-why")],
                className="rs-queries",
            )
        )
    return dmc.Stack([*cards, *left], gap="sm")


def _card(context: Context, name: str, finding: Finding) -> Any:
    badge = dmc.Badge(finding.severity, color=_COLOURS[finding.severity], variant="light", radius="sm")
    sure = dmc.Text(f"{finding.sure} · {finding.family.replace('_', ' ')}", size="xs", c="dimmed")
    figures = components.facts(
        *(components.fact(key.replace("_", " "), number(value)) for key, value in finding.figures.items())
    )
    place = address_of(finding.address)
    shown = (
        [components.link("Show it", Address(place.page, name, place.round, place.record, place.query), context.prefix)]
        if place
        else []
    )
    lists = [
        part
        for title, texts in (("Likely causes", finding.causes), ("What to try", finding.tries))
        if texts
        for part in (
            dmc.Text(title, size="xs", c="dimmed", mt=6),
            dmc.List([dmc.ListItem(components.text_of(text)) for text in texts], size="sm"),
        )
    ]
    return dmc.Paper(
        [
            dmc.Group([badge, dmc.Text(components.text_of(finding.wrong), fw=600, size="sm"), *shown], gap="sm"),
            sure,
            figures,
            *lists,
            dmc.Box(components.copied(shlex.join(finding.command)), mt=6),
        ],
        withBorder=True, radius="md", p="sm",
    )  # fmt: skip


def _examined(context: Context, name: str, token: str) -> Examined:
    return _of_path(str(context.reading.path(name)), token)


@lru_cache(maxsize=16)
def _of_path(path: str, token: str) -> Examined:
    del token  # what was found belongs to what was there then
    return examine_fully(path)


def register(app: Dash, context: Context) -> None:
    """A long run is examined on request."""

    @app.callback(
        Output("findings-list", "children"),
        Input("findings-examine", "n_clicks"),
        State("url", "pathname"),
        running=[(Output("findings-examine", "loading"), True, False)],
        prevent_initial_call=True,
    )
    def examine(clicks: int | None, path: str) -> Any:
        address = context.address(path, "")
        if not clicks or address is None:
            raise PreventUpdate
        try:
            return found(context, address.run)
        except RollsightError as error:
            return components.failed(str(error))
