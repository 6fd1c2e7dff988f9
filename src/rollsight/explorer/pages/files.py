"""Is everything of the run there? What is missing, damaged, foreign or still being written is said, never hidden."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State
from dash.exceptions import PreventUpdate

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.theme import number
from rollsight.runs.check import Checked, check_run

_LISTED = 40  # names of each kind


def layout(context: Context, address: Address) -> Any:
    """Rows expected against rows there by round, the state of the run, and every file verified on request."""
    path = context.reading.path(address.run)
    parts: list[Any] = [components.heading("Files", f"Is everything of {address.run} there?")]
    try:
        parts.append(_state(context, address.run))
        parts.append(components.problems(context.reading.problems(address.run)))
        parts.append(_versions(context.reading.metadata(address.run)))
    except RollsightError as error:  # the check below works without run.json, too
        parts.append(components.failed(str(error)))
    button = dmc.Button("Verify every file", id="files-check", size="xs", variant="outline")
    parts.append(
        components.card(
            "Digests",
            dmc.Box(id="files-checked", children=components.copied(shlex.join(["rollsight", "check", str(path)]))),
            note="Compares each file with the digest that its writer left in SHA256SUMS.",
            right=button,
        )
    )
    return parts


def _state(context: Context, name: str) -> Any:
    state = {
        "running": "Being written now",
        "ended": "Not being written",
        "stopped": "Stopped before its last planned round",
    }
    found, run = context.reading.completeness(name), context.reading.run(name)
    language = runs.is_language(run.metadata)
    parts = [
        components.fact("State", state[context.state(name)]),
        components.fact("Complete rounds", number(len(found.complete))),
        components.fact("Rounds in flight", runs.spell(found.in_flight)),
        components.fact("Records expected", number(found.expected)),
        components.fact("Records there", number(found.rows)),
        components.fact("Snapshots", number(len(run.policy_rounds if language else run.snapshot_rounds))),
    ]
    wrong = [f"{kind} of {_rounds(gone)} are missing" for kind, gone in found.missing.items()]
    wrong += [f"records of round {round}: {why}" for round, why in list(found.unreadable.items())[:_LISTED]]
    children: list[Any] = [components.facts(*parts)]
    if wrong:
        items = dmc.List([dmc.ListItem(components.text_of(text)) for text in wrong], size="sm")
        children.append(dmc.Alert(items, title="Not everything is there", color="orange", mt="sm"))
    return components.card(
        "Rows", *children, note="What each round's summary says it had, against the rows of its file.", mb="sm"
    )


def _rounds(numbers: Sequence[int]) -> str:
    return f"round{'s' if len(numbers) > 1 else ''} {runs.spell(numbers)}"


def _versions(metadata: Any) -> Any:
    versions = metadata.get("versions") or {}
    text = " · ".join(f"{name} {version}" for name, version in versions.items())
    command = metadata.get("command")
    children: list[Any] = [dmc.Text(components.text_of(text), size="xs", c="dimmed")]
    if isinstance(command, list):
        children.insert(0, components.copied(shlex.join(map(str, command))))
    return components.card("Made by", *children, mb="sm")


def checked(found: Checked) -> Any:
    """The result of verifying every file."""
    if found.whole:
        said = f"{len(found.verified):,} files are as they were written"
        if found.unverifiable:
            said += f"; {len(found.unverifiable):,} of an earlier version have no digest"
        return dmc.Alert(said, color="teal", title="Everything is there")
    groups = [
        ("Damaged", [f"{name}: {why}" for name, why in found.damaged.items()]),
        ("Missing", list(found.missing)),
        ("Not readable", [f"{name}: {why}" for name, why in found.unreadable.items()]),
        ("Foreign", [f"{name}: {why}" for name, why in found.foreign.items()]),
    ]
    lists = []
    for title, names in groups:
        if names:
            more = [dmc.ListItem(f"and {len(names) - _LISTED:,} more")] if len(names) > _LISTED else []
            items = [dmc.ListItem(components.text_of(name)) for name in names[:_LISTED]]
            lists += [dmc.Text(title, fw=600, size="sm"), dmc.List([*items, *more], size="sm")]
    return dmc.Alert(
        dmc.Stack(lists, gap=4),
        color="red",
        title=f"{len(found.verified):,} files are as they were written; others are not",
    )


def register(app: Dash, context: Context) -> None:
    """Verify on request: it reads every byte of the run."""

    @app.callback(
        Output("files-checked", "children"),
        Input("files-check", "n_clicks"),
        State("url", "pathname"),
        running=[(Output("files-check", "loading"), True, False)],
        prevent_initial_call=True,
    )
    def check(clicks: int | None, path: str) -> Any:
        address = context.address(path, "")
        if not clicks or address is None:
            raise PreventUpdate
        try:
            return checked(check_run(context.reading.path(address.run)))
        except RollsightError as error:
            return components.failed(str(error))
