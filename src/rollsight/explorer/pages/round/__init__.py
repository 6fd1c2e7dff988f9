"""One round: which records helped and which hurt, where in the rollout they stand, and all of them in a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output

from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.pages.round import facts, pictures, table
from rollsight.explorer.rounds import round_of
from rollsight.explorer.tables import task_of
from rollsight.explorer.trust import trust_of


def layout(context: Context, address: Address) -> Any:
    """The round's facts, figures and records (`?target=return&by=episode&filter={...}&sort=score_return:asc`).

    Raises:
        RollsightError: the round, its file or the target is not there.
    """
    number = address.round or 0
    reading = context.reading
    round = round_of(reading, address.run, number, address.query.get("target"))
    summary = context.summary(address.run, number)
    right = dmc.Group([_targets(round.targets, round.target), *_neighbours(context, address)], gap="sm")
    lead = f"{address.run} · {task_of(reading.metadata(address.run))}"
    return [
        components.heading(f"Round {number}", components.text_of(lead), right),
        components.problems(reading.problems(address.run)),
        components.trust_line(trust_of(summary)),
        *facts.said(summary),
        dmc.Paper(components.facts(*facts.facts(round, summary)), withBorder=True, radius="md", p="sm", mb="sm"),
        *pictures.layout(context, address, round, summary),
        table.layout(context, address, round),
    ]


def keys(context: Context, address: Address) -> Mapping[str, Address]:
    """The rounds before and after, with the same choices; up to the run."""
    numbers = context.reading.round_numbers(address.run)
    number = address.round or 0
    led = {"up": Address("overview", address.run)}
    if before := [one for one in numbers if one < number]:
        led["previous"] = Address("round", address.run, before[-1], query=address.query)
    if after := [one for one in numbers if one > number]:
        led["next"] = Address("round", address.run, after[0], query=address.query)
    return led


def register(app: Dash, context: Context) -> None:
    """Figures filter the table; the table's choices are kept in the address."""
    pictures.register(app, context)
    table.register(app, context, keys)
    app.clientside_callback(
        ClientsideFunction("rollsight", "chooseTarget"),
        Output("round-target", "id"),
        Input("round-target", "value"),
        prevent_initial_call=True,
    )


def _targets(targets: tuple[str, ...], target: str | None) -> Any:
    choice = dmc.Select(
        id="round-target", data=list(targets), value=target, size="xs", w=180, allowDeselect=False,
        **{"aria-label": "Target of the scores"},
    )  # fmt: skip
    return dmc.Box(choice, display=None if len(targets) > 1 else "none")


def _neighbours(context: Context, address: Address) -> list[Any]:
    led = keys(context, address)
    shown = (("previous", "← Round {}"), ("next", "Round {} →"))
    return [
        components.link(label.format(led[key].round), led[key], context.prefix) for key, label in shown if key in led
    ]
