"""Prompts with their groups of completions: which taught something, which hurt, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import MATCH, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate

from rollsight.errors import RollsightError
from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.completions import Filter, Order
from rollsight.explorer.context import Context
from rollsight.explorer.figures.tokens import measure_of
from rollsight.explorer.following import follow
from rollsight.explorer.pages.prompts.choice import Choice, choice
from rollsight.explorer.pages.prompts.detail import completion_text, detail, scale_for
from rollsight.explorer.pages.prompts.elsewhere import elsewhere
from rollsight.explorer.pages.prompts.listing import listing
from rollsight.explorer.trust import trust_of

_FILTERS: Mapping[Filter, str] = {
    "all": "All completions",
    "harmful": "Harmful",
    "hack": "High reward but harmful",
    "dropped": "Dropped",
    "truncated": "At the length limit",
    "empty": "Empty",
    "invalid": "Invalid",
    "same": "Groups that do not differ",
}
_ORDERS: Mapping[Order, str] = {
    "worst": "Worst score first",
    "best": "Best score first",
    "reward": "Highest reward first",
    "stored": "As generated",
}
_LEAD = "What each prompt was answered, and which answers hurt the target. Keys: previous and next prompt."


def layout(context: Context, address: Address) -> Any:
    """The round's prompts, one of them open (`?round=3&group=5&show=harmful&order=worst&search=&shade=&target=`)."""
    if not context.reading.round_numbers(address.run):
        return [
            components.heading(f"{address.run}: prompts"),
            components.follower("prompts", context.reading.token(address.run)),
            components.empty("No round is complete yet", "Load this page again when the first round is over."),
        ]
    chosen = choice(context, address)
    return [
        components.heading(f"{address.run}: prompts of round {chosen.round}", _LEAD),
        components.follower("prompts", context.reading.token(address.run)),
        components.problems(context.reading.problems(address.run)),
        dcc.Store(id="prompts-shown", data=_shown(chosen)),
        html.Div(_trust(context, chosen), id="prompts-trust"),
        _controls(context, chosen),
        html.Div(_body(context, chosen), id="prompts-body", className="rs-prompts"),
    ]


def keys(context: Context, address: Address) -> Mapping[str, Address]:
    """The neighbours in the list; up to the round."""
    if not context.reading.round_numbers(address.run):
        return {}
    return _keys(choice(context, address))


def _keys(chosen: Choice) -> dict[str, Address]:
    near = {"previous": chosen.neighbour(-1), "next": chosen.neighbour(1)}
    up = {"up": Address("round", chosen.address.run, chosen.round)}
    return {key: to for key, to in near.items() if to is not None} | up


def _body(context: Context, chosen: Choice) -> list[Any]:
    return [listing(context, chosen), html.Div([*detail(context, chosen), elsewhere(context, chosen)])]


def _shown(chosen: Choice) -> dict[str, Any]:
    """The state of the controls, and the open prompt."""
    return {
        "round": str(chosen.round),
        "show": chosen.show,
        "order": chosen.order,
        "shade": chosen.shade or "none",
        "target": chosen.target,
        "search": chosen.search,
        "group": chosen.group,
    }


def _trust(context: Context, chosen: Choice) -> Any:
    return components.trust_line(trust_of(context.summary(chosen.address.run, chosen.round)))


def _controls(context: Context, chosen: Choice) -> Any:
    rounds = _options(context.reading.round_numbers(chosen.address.run))
    shades = {"none": "No shade", **{name: f"By {measure_of(name).name}" for name in chosen.shades}}

    def select(name: str, label: str, data: Any, value: str | None, width: int, hidden: bool = False) -> Any:
        style = {"display": "none"} if hidden else {}
        return dmc.Select(
            id=f"prompts-{name}", label=label, data=data, value=value, size="xs", w=width, allowDeselect=False,
            style=style, **({"searchable": True} if name == "round" else {}),
        )  # fmt: skip

    def named(options: Mapping[Any, str]) -> list[dict[str, str]]:
        return [{"value": str(value), "label": label} for value, label in options.items()]

    return dmc.Group(
        [
            select("round", "Round", rounds, str(chosen.round), 96),
            select("show", "Show", named(_FILTERS), chosen.show, 190),
            select("order", "Order", named(_ORDERS), chosen.order, 170),
            select("shade", "Tokens", named(shades), chosen.shade or "none", 160, hidden=not chosen.shades),
            select("target", "Target", chosen.targets, chosen.target, 130, hidden=len(chosen.targets) < 2),
            dmc.TextInput(
                id="prompts-search", label="Search", placeholder="In prompts and completions  ( / )",
                value=chosen.search, size="xs", w=250, debounce=250, **{"data-search": "true"},
            ),
        ],
        gap="sm", mb="sm", align="flex-end",
    )  # fmt: skip


def _options(numbers: list[int]) -> list[str]:
    """Newest first: that is where a reader begins."""
    return [str(number) for number in reversed(numbers)]


def register(app: Dash, context: Context) -> None:
    """Choosing draws list and prompt anew; a long text is shown whole where asked; new rounds can be chosen."""

    @app.callback(
        Output("prompts-body", "children"),
        Output("prompts-trust", "children"),
        Output("query", "data", allow_duplicate=True),
        Output("keys", "data", allow_duplicate=True),
        Output("prompts-shown", "data"),
        Input("prompts-round", "value"),
        Input("prompts-show", "value"),
        Input("prompts-order", "value"),
        Input("prompts-shade", "value"),
        Input("prompts-target", "value"),
        Input("prompts-search", "value"),
        State("prompts-shown", "data"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def choose(
        round: str, show: str, order: str, shade: str, target: str | None, search: str, shown: dict[str, Any], path: str
    ) -> Any:
        address = context.address(path, "")
        asked = {"round": round, "show": show, "order": order, "shade": shade, "target": target, "search": search or ""}
        changed = {name for name, value in asked.items() if value != shown[name]}
        if address is None or not changed:  # Dash calls this where the page appears, too
            raise PreventUpdate
        # Another shade or target leaves the open prompt open; with anything else the list is another.
        group = shown["group"] if changed <= {"shade", "target"} else None
        address = address.at(**{**asked, "search": search or None, "group": group})
        try:
            chosen = choice(context, address)
        except RollsightError as error:
            return components.failed(str(error)), no_update, no_update, no_update, no_update
        links = {key: context.href(to) for key, to in _keys(chosen).items()}
        return (
            _body(context, chosen),
            _trust(context, chosen),
            components.choices(path, **address.query),
            links,
            _shown(chosen),
        )

    @app.callback(
        Output({"type": "prompts-text", "row": MATCH}, "children"),
        Input({"type": "prompts-whole", "row": MATCH}, "n_clicks"),
        State("prompts-round", "value"),
        State("prompts-shade", "value"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def whole(clicks: int | None, round: str, shade: str, path: str) -> Any:
        address = context.address(path, "")
        if not clicks or address is None or ctx.triggered_id is None:
            raise PreventUpdate
        chosen = choice(context, address.at(round=round, shade=shade))
        return completion_text(chosen, ctx.triggered_id["row"], scale_for(chosen), whole=True)

    def made(address: Address) -> tuple[Any, ...]:
        return (_options(context.reading.round_numbers(address.run)),)

    follow(app, context, "prompts", [Output("prompts-round", "data")], made)
