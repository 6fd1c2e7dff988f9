"""Several runs next to each other: what one arm gains over another, and the same round record by record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

from rollsight.errors import RollsightError
from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.pages.compare.sides import found, pair_of, rounds_of, sides
from rollsight.runs import is_language

if TYPE_CHECKING:
    from rollsight.explorer.comparing import Compared


def layout(context: Context, address: Address) -> Any:
    """The chosen runs (`?runs=a,b&baseline=ppo`), and two of them side by side (`&a=&b=&round=&by=&only=`)."""
    every = context.reading.names()
    names = chosen(context, address)
    picker = dmc.MultiSelect(
        id="compare-runs", data=every, value=names, searchable=True, clearable=True, size="xs", maxDropdownHeight=320,
        placeholder="Choose runs", nothingFoundMessage="No run of this name", hidePickedOptions=True,
        **{"aria-label": "Runs to compare"},
    )  # fmt: skip
    top = [
        components.heading("Compare", "Arms of the same environment or model, paired by seed."),
        dmc.Box(picker, mb="sm"),
    ]
    if not every:
        what = "Train one with the callback or from the command line, then choose it here."
        return [*top, _body(components.empty("There is no run here yet", what, "rollsight train CartPole-v1"))]
    if len(names) < 2:
        what = "Choose them above, or tick them in the list of runs and press Compare."
        return [*top, _body(components.empty("Choose at least two runs", what))]
    return [*top, _body(_compared(context, address, names))]


def chosen(context: Context, address: Address) -> list[str]:
    """The runs that the address names and that are there, each once."""
    there = set(context.reading.names())
    return list(dict.fromkeys(name for name in address.query.get("runs", "").split(",") if name in there))


def _body(content: Any) -> Any:
    return html.Div(content, id="compare-body")


def _compared(context: Context, address: Address, names: list[str]) -> list[Any]:
    parts: list[Any] = [
        components.follower("compare", _token(context, names)),
        *_baselines(context, address, names),
        html.Div(_arms(context, address, names), id="compare-arms"),
        sides(context, address, names),
    ]
    # Here, not above: with PyTorch and SciPy behind it, which no other page needs, a server would start with twice the
    # memory and seconds later.
    from rollsight.explorer.pages.compare.arms import intervention_cards

    boxes = intervention_cards(context, names)
    if boxes:
        return [*parts, dmc.Box(boxes, mt="sm")]
    replayable = [name for name in names if not is_language(context.reading.metadata(name))]
    if not replayable:
        return parts
    first = context.reading.path(replayable[0])
    what = "Replay rounds that have a snapshot without their harmful records, and keep the result next to the run."
    command = f"rollsight intervene {first} --out {first}.results/intervention/selection"
    nothing = components.empty("None is kept of these runs", what, command)
    return [*parts, dmc.Box(components.card("Interventions", nothing), mt="sm")]


def _token(context: Context, names: list[str]) -> str:
    """What changes whenever rows of one of the runs do."""
    return " ".join(context.reading.token(name) for name in names)


def _arms(context: Context, address: Address, names: list[str]) -> list[Any]:
    """Curves and gains by environment, or why there are none."""
    from rollsight.explorer.pages.compare.arms import cards  # as above

    try:
        comparisons = _comparisons(context, address, names)
    except RollsightError as error:
        return [components.failed(str(error))]
    return [card for index, one in enumerate(comparisons) for card in cards(one, index)]


def _comparisons(context: Context, address: Address, names: list[str]) -> list[Compared]:
    from rollsight.explorer.comparing import compared  # as above

    reading = context.reading
    empty = [name for name in names if not reading.round_numbers(name)]
    if empty:
        raise RollsightError(f"{', '.join(empty)} has no complete round yet: leave it out, or wait for its first round")
    folders = tuple(reading.path(name) for name in names)
    return compared(folders, tuple(reading.token(name) for name in names), address.query.get("baseline"))


def _baselines(context: Context, address: Address, names: list[str]) -> list[Any]:
    """The arm that the others are compared with; not shown where there is one arm only."""
    arms = list(dict.fromkeys(context.reading.run(name).arm for name in names))
    asked = address.query.get("baseline")
    value = asked if asked in arms else arms[0]
    select = dmc.Select(
        id="compare-baseline", label="Compared with", data=arms, value=value, size="xs", w=260, mb="sm",
        allowDeselect=False, searchable=True, style={} if len(arms) > 1 else {"display": "none"},
    )  # fmt: skip
    return [select, dcc.Store(id="compare-shown", data=value)]


def register(app: Dash, context: Context) -> None:
    """Other runs, another baseline, another pair: the address says it, and the page shows that address."""
    # Both go to the address that has the choice in it; the page of that address is drawn as any other.
    app.clientside_callback(
        """(names, path) => {
            const query = new URLSearchParams(window.location.search);
            const wanted = (names || []).join(",");
            if ((query.get("runs") || "") === wanted) return window.dash_clientside.no_update;
            wanted ? query.set("runs", wanted) : query.delete("runs");
            return window.dash_clientside.rollsight.go(path + "?" + query);
        }""",
        Output("compare-runs", "id"),
        Input("compare-runs", "value"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        """(arm, shown, path) => {
            if (!arm || arm === shown) return window.dash_clientside.no_update;
            const query = new URLSearchParams(window.location.search);
            query.set("baseline", arm);
            return window.dash_clientside.rollsight.go(path + "?" + query);
        }""",
        Output("compare-baseline", "id"),
        Input("compare-baseline", "value"),
        State("compare-shown", "data"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )

    @app.callback(
        Output("compare-arms", "children"),
        Output("compare-round", "data"),
        Output("compare-token", "data"),
        Input("compare-poll", "n_intervals"),
        State("compare-token", "data"),
        State("compare-runs", "value"),
        State("compare-baseline", "value"),
        State("compare-round", "value"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def follow(_: int, shown: str, names: list[str], baseline: str, round: str, path: str) -> tuple[Any, ...]:
        address = context.address(path, "")
        if address is None or len(names) < 2 or (token := _token(context, names)) == shown:
            raise PreventUpdate
        address = address.at(baseline=baseline)
        return _arms(context, address, names), rounds_of(context, names, int(round)), token

    @app.callback(
        Output("compare-found", "children"),
        Output("query", "data", allow_duplicate=True),
        Input("compare-a", "value"),
        Input("compare-b", "value"),
        Input("compare-round", "value"),
        Input("compare-by", "value"),
        Input("compare-only", "checked"),
        State("compare-runs", "value"),
        State("compare-baseline", "value"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def show_pair(
        a: str, b: str, round: str, by: str | None, only: bool, names: list[str], baseline: str | None, path: str
    ) -> Any:
        address = context.address(path, "")
        if address is None or len(names) < 2:
            raise PreventUpdate
        asked = {"runs": ",".join(names), "baseline": baseline, "a": a, "b": b, "round": round, "by": by}
        address = address.at(**asked, only="changed" if only else None)
        return found(context, pair_of(context, address, names)), components.choices(path, **address.query)
