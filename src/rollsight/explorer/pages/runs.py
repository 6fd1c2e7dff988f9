"""All runs: a table to search, and the learning curves of those that are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, State, dcc
from dash.exceptions import PreventUpdate

from rollsight.errors import RollsightError
from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.figures.curves import Line, Strip, bands, over_rounds
from rollsight.explorer.tables import column, performance, task_of

_PREPARED = 4  # runs that are read before they are opened
_CHOSEN = 8  # runs whose curves are drawn unless others are chosen

_NUMBER = {"type": "rightAligned", "filter": False}
_COLUMNS: list[dict[str, Any]] = [
    {"field": "name", "headerName": "Run", "cellRenderer": "runLink", "minWidth": 170, "flex": 2, "pinned": "left"},
    {"field": "task", "headerName": "Task", "flex": 2, "minWidth": 140, "tooltipField": "task"},
    {"field": "algorithm", "headerName": "Algorithm", "width": 110, "filter": False},
    {"field": "arm", "headerName": "Arm", "flex": 1, "minWidth": 105, "tooltipField": "arm"},
    {"field": "seed", "headerName": "Seed", "width": 68, **_NUMBER},
    {"field": "rounds", "headerName": "Rounds", "width": 85, **_NUMBER},
    {"field": "last", "headerName": "Last", "width": 80, "headerTooltip": "Last return or reward", **_NUMBER},
    {"field": "kept", "headerName": "Kept", "width": 82, "headerTooltip": "Share of the valid records", **_NUMBER},
    {
        "field": "halves",
        "headerName": "Agreement",
        "width": 118,
        "headerTooltip": "Rank agreement of halves of the last round",
        **_NUMBER,
    },
    {"field": "state", "headerName": "State", "width": 108, "filter": False},
    {"field": "warnings", "headerName": "Warnings", "flex": 1, "minWidth": 125, "tooltipField": "warnings"},
]
_STATES = {"running": "training", "ended": "ended", "stopped": "stopped early"}
_FORMATS = {
    "last": "params.value == null ? '–' : d3.format(Math.abs(params.value) < 100 ? '.3~r' : ',.0f')(params.value)",
    "kept": "params.value == null ? '–' : d3.format('.3~r')(100 * params.value) + ' %'",
    "halves": "params.value == null ? '–' : d3.format('.2f')(params.value)",
}


def layout(context: Context, address: Address) -> Any:
    """The table of runs, and the curves of the chosen ones (`?runs=a,b&by=arm`)."""
    rows = table(context)
    if not rows:
        return components.empty(
            "There is no run here yet",
            "Train one with the callback or from the command line; it shows here as soon as its first round is over.",
            "rollsight train CartPole-v1 --out runs/cartpole",
        )
    names = [row["name"] for row in rows]
    chosen = [name for name in address.query.get("runs", "").split(",") if name in names] or _first(rows)
    by = address.query.get("by", "arm")
    grid = dag.AgGrid(
        id="runs-table",
        rowData=rows,
        columnDefs=[
            {
                **definition,
                **(
                    {"valueFormatter": {"function": _FORMATS[field]}}
                    if (field := str(definition["field"])) in _FORMATS
                    else {}
                ),
            }
            for definition in _COLUMNS
        ],
        defaultColDef={"sortable": True, "filter": True, "resizable": True, "floatingFilter": False},
        dashGridOptions={
            **components.GRID_OPTIONS,
            "rowSelection": {"mode": "multiRow", "enableClickSelection": False},
            "selectionColumnDef": {"pinned": "left", "width": 44},
            "quickFilterText": address.query.get("search", ""),
        },
        getRowId="params.data.name",
        selectedRows={"ids": chosen},
        style={"height": f"{min(420, 40 + 32 * len(rows))}px"},
        className="ag-theme-quartz rs-grid",
    )
    search = dmc.TextInput(
        id="runs-search", placeholder="Search runs  ( / )", size="xs", w=240, value=address.query.get("search", ""),
        debounce=150, **{"aria-label": "Search runs", "data-search": "true"},
    )  # fmt: skip
    group = dmc.SegmentedControl(
        id="runs-by", size="xs", value=by,
        data=[{"value": "arm", "label": "Mean over seeds"}, {"value": "run", "label": "Each run"}],
        **{"aria-label": "How curves are drawn"},
    )  # fmt: skip
    token = context.token()
    return [
        components.follower("runs", token),
        dcc.Store(id="runs-drawn", data={"names": chosen, "by": by, "token": token}),
        components.heading(
            "Runs",
            "Tick runs to draw them. Open one by its name, or a round by a click on its curve.",
            dmc.Group([search, dmc.Button("Compare", id="runs-compare", size="xs", variant="light")], gap="sm"),
        ),
        dmc.Paper(grid, withBorder=True, radius="md", mb="sm", style={"overflow": "hidden"}),
        components.card(
            "Learning curves",
            components.graph("runs-curves", curves(context, chosen, by)),
            note="Mean over seeds, with a band from the lowest to the highest seed.",
            right=group,
        ),
    ]


def table(context: Context) -> list[dict[str, Any]]:
    """One row a run, newest first."""
    rows = []
    for name in context.reading.names():
        try:
            rows.append(
                {
                    "name": name,
                    "href": context.href(Address("overview", name)),
                    **context.reading.summary(name),
                    "state": _STATES[context.state(name)],
                }
            )
        except RollsightError as error:
            rows.append(
                {"name": name, "href": context.href(Address("files", name)), "warnings": components.text_of(error)}
            )
    return sorted(rows, key=lambda row: str(row.get("created", "")), reverse=True)


def curves(context: Context, names: Sequence[str], by: str) -> Any:
    """The learning curves of these runs: one strip for each task."""
    strips: dict[tuple[str, str], dict[str, list[Line]]] = {}
    for name in names:
        try:
            metadata, rounds = context.reading.metadata(name), context.reading.curve(name)
        except RollsightError:
            continue  # the table says what is wrong with it
        if not len(rounds):
            continue
        measure, values = performance(rounds)
        arm = " ".join(dict.fromkeys((str(metadata.get("algo", "")), context.reading.run(name).arm))).strip()
        label = name if by == "run" else arm
        place = strips.setdefault((task_of(metadata), measure), {})
        place.setdefault(label, []).append(Line(label, column(rounds, "round"), values))
    drawn = [
        Strip(
            f"{measure}<br>{components.text_of(task)[:34]}",
            bands(lines) if by == "arm" else [one for group in lines.values() for one in group],
        )
        for (task, measure), lines in strips.items()
    ]
    return (
        over_rounds(drawn, height=240 if len(drawn) == 1 else 170) if drawn else over_rounds([Strip("return", [])], 200)
    )


def _first(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The runs of the newest run's task, as many as a figure can show."""
    task = rows[0].get("task")
    return [row["name"] for row in rows if row.get("task") == task][:_CHOSEN]


def register(app: Dash, context: Context) -> None:
    """Searching filters in the browser; choosing draws anew; a click on a curve opens the round."""

    # The table says what is ticked whenever it is made or gets rows: only what differs is drawn anew.
    app.clientside_callback(
        ClientsideFunction("rollsight", "chooseRuns"),
        Output("runs-drawn", "data"),
        Input("runs-table", "selectedRows"),
        Input("runs-by", "value"),
        Input("runs-token", "data"),
        State("runs-drawn", "data"),
        prevent_initial_call=True,
    )

    @app.callback(
        Output("runs-curves", "figure"),
        Output("query", "data", allow_duplicate=True),
        Input("runs-drawn", "data"),
        State("runs-search", "value"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def draw(drawn: dict[str, Any], search: str, path: str) -> Any:
        names, by = drawn["names"], drawn["by"]
        chosen = components.choices(path, runs=",".join(names), by=by, search=search or None)
        return curves(context, names[: 4 * _CHOSEN], by), chosen

    app.clientside_callback(
        "(text) => ({quickFilterText: text || ''})",
        Output("runs-table", "dashGridOptions", allow_duplicate=True),
        Input("runs-search", "value"),
        prevent_initial_call=True,
    )

    app.clientside_callback(
        """(clicks, rows, path) => {
            const names = ((rows && rows.ids) || rows || []).map((row) => row.name || row);
            if (!clicks) return window.dash_clientside.no_update;
            const to = path.replace(/\\/?$/, "/compare");
            return window.dash_clientside.rollsight.go(to + "?" + new URLSearchParams({runs: names.join(",")}));
        }""",
        Output("runs-compare", "id"),
        Input("runs-compare", "n_clicks"),
        State("runs-table", "selectedRows"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )

    @app.callback(
        Output("runs-table", "rowTransaction"),
        Output("runs-token", "data"),
        Input("runs-poll", "n_intervals"),
        State("runs-token", "data"),
        State("runs-table", "rowData"),
        State("runs-table", "selectedRows"),
        prevent_initial_call=True,
    )
    def update(ticks: int, shown: str, before: list[dict[str, Any]], selected: Any) -> Any:
        if ticks == 1:  # the page is drawn, and one of these runs will be opened next
            context.reading.prepare(_names(selected)[:_PREPARED])
        if (token := context.token()) == shown:
            raise PreventUpdate
        known = {row["name"]: row for row in before}
        now = table(context)
        changes = {
            "add": [row for row in now if row["name"] not in known],
            "update": [row for row in now if row["name"] in known and row != known[row["name"]]],
        }
        return changes, token


def _names(selected: Any) -> list[str]:
    """The chosen runs, as the table says them: their ids, or their rows."""
    rows = selected.get("ids", []) if isinstance(selected, dict) else selected or []
    return [row if isinstance(row, str) else row["name"] for row in rows]
