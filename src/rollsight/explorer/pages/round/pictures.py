"""The figures of a round, and how they filter the table below or open a record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
import numpy as np
import plotly.graph_objects as go
from dash import Dash, Input, Output, State, ctx, html, no_update

from rollsight.errors import RollsightError
from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.figures import scores as figures
from rollsight.explorer.figures.strip import Places, places, strip
from rollsight.explorer.filtering import PHASE, between, equal
from rollsight.explorer.rounds import By, Masses, Round, choices, cut_of, episode_ends, masses, round_of
from rollsight.explorer.tables import action_of, signal_of
from rollsight.explorer.theme import dressed
from rollsight.runs import is_language

_BY = {"action": "Action", "group": "Prompt", "phase": "Phase", "env": "Env.", "episode": "Episode"}
_OPEN = """(click) => {
    const record = click && click.points && click.points[0].customdata;
    if (record === null || record === undefined || Number.isNaN(+record)) return window.dash_clientside.no_update;
    const target = new URLSearchParams(window.location.search).get("target");
    const path = window.location.pathname.replace(/\\/$/, "").replace(/\\/round\\/(\\d+)$/, "/record/$1/" + record);
    return window.dash_clientside.rollsight.go(path + (target ? "?target=" + encodeURIComponent(target) : ""));
}"""


def layout(context: Context, address: Address, round: Round, summary: Mapping[str, Any]) -> Any:
    """Histogram, score against advantage, mass, and the rollout as it was collected."""
    if not np.isfinite(round.scores).any():
        # The parts that callbacks name are there, and empty.
        hidden = [
            html.Div(components.graph(f"round-{name}", dressed(go.Figure(), 10)), hidden=True)
            for name in ("histogram", "scatter", "mass", "strip")
        ]
        by = html.Div(dmc.SegmentedControl(id="round-by", data=[]), hidden=True)
        return [
            components.empty(
                "This round was not scored",
                "Scores say which records helped and which hurt. Train with scoring on in this round, or score it "
                "from a snapshot in Python. The records are below.",
            ),
            *hidden,
            by,
        ]
    metadata = context.reading.metadata(address.run)
    offered = choices(round)
    asked = address.query.get("by")
    by = next((one for one in offered if one == asked), offered[0] if offered else None)
    choice = dmc.SegmentedControl(
        id="round-by", size="xs", value=by, data=[{"value": one, "label": _called(round, one)} for one in offered],
        **{"aria-label": "Split the mass by"},
    )  # fmt: skip
    cards = [
        components.card(
            "Scores",
            components.graph("round-histogram", figures.histogram(round.scores, round.status, cut_of(round, summary))),
            note="Click a bar or drag over several: the table shows them.",
        ),
        components.card(
            f"Score against {signal_of(round.table)[1]}",
            components.graph("round-scatter", scatter(round, is_language(metadata))),
            note="Click a point to open its record.",
        ),
        components.card(
            "Harmful mass",
            components.graph("round-mass", mass(round, by, metadata)),
            note="Click a bar: the table shows its records.",
            right=choice,
        ),
    ]
    return [
        dmc.SimpleGrid(cards, cols={"base": 1, "lg": 3}, spacing="sm", mb="sm"),
        components.card(
            "The rollout",
            components.graph("round-strip", rollout(round, metadata)),
            note="One cell a record, as it was collected. Click one to open it.",
            mb="sm",
        ),
    ]


def scatter(round: Round, language: bool) -> Any:
    """Score against advantage, or TD error."""
    column, name = signal_of(round.table)
    unit = "as trained on" if language else "return"
    return figures.against_advantage(round.scores, round.column(column), round.status, unit, name=name)


def mass(round: Round, by: By | None, metadata: Mapping[str, Any]) -> Any:
    """Harmful and helpful mass by what was chosen."""
    if by is None:
        return figures.split_mass([], np.array([]), np.array([]), np.array([]))
    split = masses(round, by)
    return figures.split_mass(_labels(round, split, metadata), split.hurt, split.helped, split.records, split.left_out)


def _called(round: Round, by: By) -> str:
    return "Completion" if by == "episode" and round.has("completion") else _BY[by]


def _labels(round: Round, split: Masses, metadata: Mapping[str, Any]) -> list[str]:
    if split.by == "phase":
        return [f"{value} third" for value in split.values]
    if split.by == "action":
        return [action_of(metadata, int(value)) for value in split.values]
    return [f"{_called(round, split.by).lower()} {value}" for value in split.values]


def rollout(round: Round, metadata: Mapping[str, Any]) -> Any:
    """The strip of environments, or of prompts, and steps."""
    ends, timed_out = episode_ends(round, metadata.get("max_episode_steps"))
    return strip(round.scores, round.status, _places(round), ends, timed_out)


def _places(round: Round) -> Places:
    if round.has("env", "step") and np.isfinite(round.column("step")).all():  # of replay some may not be known
        return places(round.column("env"), round.column("step"))
    if round.has("group"):
        group = round.column("group")
        _, inverse, counts = np.unique(group, return_inverse=True, return_counts=True)
        order = np.argsort(inverse, kind="stable")
        within = np.empty(len(group))
        within[order] = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
        return places(group, within, "prompt", "completion")
    return places(np.zeros(len(round)), np.arange(len(round)), "records", "place in the buffer")


def register(app: Dash, context: Context) -> None:
    """A bar, or a span of bars, filters the table; a point or a cell opens its record."""

    @app.callback(
        Output("round-mass", "figure"),
        Input("round-by", "value"),
        State("round-target", "value"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def split(by: By, target: str | None, path: str) -> Any:
        round, address = _shown(context, path, target), context.address(path, "")
        if address is None or by not in choices(round):
            return no_update
        return mass(round, by, context.reading.metadata(address.run))

    @app.callback(
        Output("round-table", "filterModel", allow_duplicate=True),
        Output("round-histogram", "clickData"),  # so that a second click on the same bar is one
        Output("round-mass", "clickData"),
        Input("round-histogram", "clickData"),
        Input("round-histogram", "selectedData"),
        Input("round-mass", "clickData"),
        State("round-by", "value"),
        State("round-table", "filterModel"),
        State("round-target", "value"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def choose(bar: Any, span: Any, split: Any, by: By, filters: Any, target: str | None, path: str) -> Any:
        round = _shown(context, path, target)
        wanted = None
        match ctx.triggered[0]["prop_id"] if ctx.triggered else "":
            case "round-histogram.clickData":
                wanted = of_bar(round, bar)
            case "round-histogram.selectedData":
                wanted = of_span(round, span)
            case "round-mass.clickData":
                wanted = of_mass(round, by, split)
        return (no_update if wanted is None else {**(filters or {}), **wanted}), None, None

    for name in ("scatter", "strip"):
        app.clientside_callback(
            _OPEN, Output(f"round-{name}", "id"), Input(f"round-{name}", "clickData"), prevent_initial_call=True
        )


def of_bar(round: Round, click: Any) -> dict[str, Any] | None:
    """The filter that a click on a bar of the histogram means."""
    data = _clicked(click)
    if not isinstance(data, list) or len(data) < 3:
        return None
    low, high, last = data[:3]
    return {round.score_column: between(float(low), float(high), bool(last))}


def of_span(round: Round, selected: Any) -> dict[str, Any] | None:
    """The filter that dragging over the histogram means: all bars that the span touches."""
    ends = ((selected or {}).get("range") or {}).get("x")
    if not ends:
        return None
    edges = figures.edges_of(round.scores)
    low = int(np.clip(np.searchsorted(edges, min(ends), side="right") - 1, 0, len(edges) - 2))
    high = int(np.clip(np.searchsorted(edges, max(ends), side="left"), low + 1, len(edges) - 1))
    return {round.score_column: between(float(edges[low]), float(edges[high]), high == len(edges) - 1)}


def of_mass(round: Round, by: By, click: Any) -> dict[str, Any] | None:
    """The filter that a click on a bar of the mass means."""
    data = _clicked(click)
    split = masses(round, by)
    if not isinstance(data, list) or not 0 <= int(data[0]) < len(split.values):
        return None
    value = split.values[int(data[0])]
    return {PHASE: equal("text", str(value))} if by == "phase" else {by: equal("number", int(value))}


def _clicked(click: Any) -> Any:
    points = (click or {}).get("points") or [{}]
    return points[0].get("customdata")


def _shown(context: Context, path: str, target: str | None) -> Round:
    address = context.address(path, "")
    if address is None or address.round is None:
        raise RollsightError(f"{json.dumps(path)} is not the address of a round")
    return round_of(context.reading, address.run, address.round, target)
