"""One record: what the agent saw and did, what its score says, its episode, and records like it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output

from rollsight.errors import RollsightError
from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.pages.record import advantage, after, facts, film, like, seen
from rollsight.explorer.rounds import Round, round_of
from rollsight.explorer.similar import episode_of
from rollsight.explorer.theme import number
from rollsight.explorer.trust import trust_of
from rollsight.runs import is_language


def layout(context: Context, address: Address) -> Any:
    """A record (`?target=return`).

    Raises:
        RollsightError: the round, the record or the target is not there, or a file is damaged.
    """
    round, record = _found(context, address)
    metadata = context.reading.metadata(address.run)
    right = dmc.Group([_targets(round), *_links(context, address, round, is_language(metadata))], gap="sm")
    return [
        components.heading(f"Record {number(record)}", _where(address, round, record), right),
        components.problems(context.reading.problems(address.run)),
        components.trust_line(trust_of(context.summary(address.run, round.number))),
        dmc.Paper(
            components.facts(*facts.facts(round, record, metadata)),
            id="record-facts", withBorder=True, radius="md", p="sm", mb="sm",
        ),
        dmc.SimpleGrid(
            [
                seen.layout(round, record, metadata),
                dmc.Stack(
                    [
                        facts.targets(round, record),
                        after.layout(context, address, round, record),
                        advantage.layout(context, address, round, record),
                    ],
                    gap="sm",
                ),
            ],
            cols={"base": 1, "md": 2}, spacing="sm", mb="sm",
        ),
        film.layout(round, record),
        like.layout(context, address, round, record),
    ]  # fmt: skip


def keys(context: Context, address: Address) -> Mapping[str, Address]:
    """The records before and after in the buffer; up to the round."""
    round = address.round or 0
    record = address.record or 0
    led = {"up": Address("round", address.run, round, query=address.query)}
    count = len(context.reading.records(address.run, round))
    if 0 < record < count:
        led["previous"] = Address("record", address.run, round, record - 1, address.query)
    if record + 1 < count:
        led["next"] = Address("record", address.run, round, record + 1, address.query)
    return led


def register(app: Dash, context: Context) -> None:
    """Another target, the episode's steps, and what is computed on request."""
    after.register(app, context)
    advantage.register(app, context)
    film.register(app, context)
    app.clientside_callback(
        ClientsideFunction("rollsight", "chooseTarget"),
        Output("record-target", "id"),
        Input("record-target", "value"),
        prevent_initial_call=True,
    )


def _found(context: Context, address: Address) -> tuple[Round, int]:
    round = round_of(context.reading, address.run, address.round or 0, address.query.get("target"))
    record = address.record or 0
    if record >= len(round):
        raise RollsightError(f"round {round.number} has {number(len(round))} records and none of number {record}")
    return round, record


def _where(address: Address, round: Round, record: int) -> Any:
    parts = [address.run, f"round {round.number}"]
    episode = "completion" if round.has("completion") else "episode"
    for name, label in (("env", "environment"), ("group", "prompt"), ("step", "step"), ("episode", episode)):
        if round.has(name):
            parts.append(f"{label} {number(round.table[name][record].as_py())}")
    if (steps := episode_of(round, record)) is not None:
        parts[-1] += f", step {number(float(steps.steps[steps.place]))} of it"
    return components.text_of(" · ".join(parts))


def _targets(round: Round) -> Any:
    choice = dmc.Select(
        id="record-target", data=list(round.targets), value=round.target, size="xs", w=180, allowDeselect=False,
        **{"aria-label": "Target of the scores"},
    )  # fmt: skip
    return dmc.Box(choice, display=None if len(round.targets) > 1 else "none")


def _links(context: Context, address: Address, round: Round, language: bool) -> list[Any]:
    led = keys(context, address)
    links = [components.link(f"↑ Round {round.number}", led["up"], context.prefix)]
    if language:
        group = round.table["group"][address.record or 0].as_py() if round.has("group") else None
        to = Address("prompts", address.run).at(round=round.number, group=group)
        links.append(components.link("Its tokens", to, context.prefix))
    elif round.has("env", "step") and round.number in context.reading.run(address.run).snapshot_rounds:
        place = ":".join(str(round.table[name][address.record or 0].as_py()) for name in ("env", "step"))
        to = Address("behaviour", address.run, query={"record": f"{round.number}:{place}"})
        links.append(components.link("How this behaviour formed", to, context.prefix))
    for key, label in (("previous", "← Previous"), ("next", "Next →")):
        if key in led:
            links.append(components.link(label, led[key], context.prefix))
    return links
