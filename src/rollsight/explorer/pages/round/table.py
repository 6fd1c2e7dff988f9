"""All records of a round: filtered, sorted and searched on the server, a page at a time; and the same rows as a file,
as SQL and as Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate

from rollsight.errors import RollsightError
from rollsight.explorer import components, filtering
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.exports import Format, exported
from rollsight.explorer.filtering import RECORD, SEARCH, STATUS, Chosen, chosen_from, equal
from rollsight.explorer.pages.round import columns
from rollsight.explorer.rounds import Round, choices, round_of
from rollsight.explorer.tables import has
from rollsight.explorer.theme import number

_FORMATS: tuple[Format, ...] = ("csv", "parquet", "json")
_QUICK = ("all", "kept", "dropped", "invalid", "hurt", "helped")


def layout(context: Context, address: Address, round: Round) -> Any:
    """The table with what is chosen in the address."""
    chosen = chosen_from(address.query.get("filter"), address.query.get("sort"))
    filtering.sql(round.table, round.number, chosen)  # an address that is not valid is said, before the table asks
    shown = columns.shown_of(round, address.query.get("columns"))
    texts = [name for name, kind in filtering.kinds(round.table).items() if kind == "text" and has(round.table, name)]
    search = dmc.TextInput(
        id="round-search", placeholder="Search texts  ( / )", size="xs", w=220, debounce=250,
        value=(chosen.filters.get(SEARCH) or {}).get("filter", ""), display=None if texts else "none",
        **{"aria-label": "Search texts", "data-search": "true"},
    )  # fmt: skip
    boxes = [dmc.Checkbox(label=name, value=name, size="xs") for name in columns.ordered(round) if name != RECORD]
    group = dmc.CheckboxGroup(
        dmc.Stack(boxes, gap=6), id="round-columns", value=[name for name in shown if name != RECORD]
    )
    choose = html.Details(
        [html.Summary("Columns"), html.Div(group, className="rs-columns")],
        id="round-columns-button",
        className="rs-choose",
    )
    quick = [
        dmc.Button(name, id=f"round-only-{name}", size="compact-xs", variant="default") for name in _offered(round)
    ]
    rest = [html.Span(id=f"round-only-{name}", hidden=True) for name in _QUICK if name not in _offered(round)]
    exports = [
        dmc.Button(name, id=f"round-export-{form}", size="compact-xs", variant="light")
        for form, name in zip(_FORMATS, ("CSV", "Parquet", "JSON"), strict=True)
    ]
    grid = dag.AgGrid(
        id="round-table",
        rowModelType="infinite",
        columnDefs=columns.definitions(round, shown, chosen.sort),
        filterModel=dict(chosen.filters),
        defaultColDef={"resizable": True, "suppressHeaderMenuButton": False},
        dashGridOptions={
            **components.GRID_OPTIONS,
            "rowBuffer": 10, "cacheBlockSize": 100, "maxBlocksInCache": 20, "infiniteInitialRowCount": 30,
            "rowHeight": 30, "multiSortKey": "ctrl", "maintainColumnOrder": True,
        },
        style={"height": "480px"},
        className="ag-theme-quartz rs-grid",
    )  # fmt: skip
    tools = dmc.Group([dmc.Group([*quick, *rest], gap=4), search, choose], gap="xs", wrap="wrap")
    below = dmc.Group(
        [
            html.Div(id="round-chosen", className="rs-chosen"),
            dmc.Group([dmc.Text("Export", size="xs", c="dimmed"), *exports], gap=6),
        ],
        justify="space-between", mt=6, mb=4,
    )  # fmt: skip
    return components.card(
        "Records",
        below,
        dmc.Paper(grid, withBorder=True, radius="sm", style={"overflow": "hidden"}),
        html.Div(id="round-queries", className="rs-queries"),
        dcc.Download(id="round-download"),
        right=tools,
    )


def _offered(round: Round) -> list[str]:
    """Buttons that show some of the records."""
    there = ["all", *(status for status in ("kept", "dropped", "invalid") if (round.status == status).any())]
    return [*there, *(["hurt", "helped"] if round.target else [])]


def register(app: Dash, context: Context, keys: Callable[[Context, Address], Mapping[str, Address]]) -> None:
    """Rows as the table asks for them; filters from outside the table; columns; files."""

    @app.callback(
        Output("round-table", "getRowsResponse"),
        Output("round-chosen", "children"),
        Output("round-queries", "children"),
        Output("query", "data", allow_duplicate=True),
        Output("keys", "data", allow_duplicate=True),
        Input("round-table", "getRowsRequest"),
        Input("round-columns", "value"),
        Input("round-by", "value"),
        State("round-target", "value"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def page(request: Any, shown: list[str], by: str | None, target: str | None, path: str) -> Any:
        address = context.address(path, "")
        if not request or address is None or address.page != "round" or address.round is None:
            raise PreventUpdate
        round = round_of(context.reading, address.run, address.round, target)
        chosen = _asked(request)
        here = address.at(**_query(round, chosen, shown, by))
        led = {key: context.href(to) for key, to in keys(context, here).items()}
        if ctx.triggered_id != "round-table":
            return no_update, no_update, no_update, components.choices(path, **here.query), led
        try:
            query = filtering.sql(round.table, round.number, chosen)
        except RollsightError as error:
            return {"rowData": [], "rowCount": 0}, components.text_of(error), no_update, no_update, no_update
        records = filtering.rows(round.table, query)
        some = records[request["startRow"] : request["endRow"]]
        data = columns.cells(round, some)
        for row, record in zip(data, some.tolist(), strict=True):
            kept = {} if target is None or target in round.targets[:1] else {"target": target}
            row["href"] = context.href(Address("record", address.run, round.number, record, kept))
        response = {"rowData": data, "rowCount": len(records)}
        path_of_run = context.reading.run(address.run).path.resolve()
        queries = [
            components.copied(filtering.command(path_of_run, query)),
            components.copied(filtering.python(path_of_run, query)),
        ]
        shown_queries = html.Details([html.Summary("The same rows by SQL and in Python"), *queries])
        return (
            response,
            _said(chosen, len(records), len(round)),
            shown_queries,
            components.choices(path, **here.query),
            led,
        )

    @app.callback(
        Output("round-table", "filterModel", allow_duplicate=True),
        *(Input(f"round-only-{name}", "n_clicks") for name in _QUICK),
        State("round-table", "filterModel"),
        State("round-target", "value"),
        prevent_initial_call=True,
    )
    def only(*given: Any) -> Any:
        filters, target = dict(given[-2] or {}), given[-1]
        name = str(ctx.triggered_id).removeprefix("round-only-")
        if not any(given[:-2]):
            raise PreventUpdate
        return only_these(filters, name, target)

    @app.callback(
        Output("round-table", "filterModel", allow_duplicate=True),
        Input("round-search", "value"),
        State("round-table", "filterModel"),
        prevent_initial_call=True,
    )
    def search(text: str | None, filters: Any) -> Any:
        now = {name: given for name, given in (filters or {}).items() if name != SEARCH}
        if text:
            now[SEARCH] = {"filterType": "text", "type": "contains", "filter": text}
        return no_update if now == (filters or {}) else now

    @app.callback(
        Output("round-table", "columnDefs"),
        Input("round-columns", "value"),
        State("round-target", "value"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def show(shown: list[str], target: str | None, path: str) -> Any:
        address = context.address(path, "")
        if address is None or address.round is None:
            raise PreventUpdate
        round = round_of(context.reading, address.run, address.round, target)
        return columns.definitions(round, [RECORD, *shown])

    @app.callback(
        Output("round-download", "data"),
        *(Input(f"round-export-{form}", "n_clicks") for form in _FORMATS),
        State("round-table", "getRowsRequest"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def export(*given: Any) -> Any:
        *clicks, request, path = given
        address = context.address(path, "")
        if not any(clicks) or address is None or address.round is None:
            raise PreventUpdate
        form: Format = str(ctx.triggered_id).removeprefix("round-export-")  # type: ignore[assignment]
        table = round_of(context.reading, address.run, address.round).table
        records = filtering.rows(table, filtering.sql(table, address.round, _asked(request or {})))
        name = f"{address.run}-round-{address.round}.{form}"
        return dcc.send_bytes(exported(table, records, form), name)


def only_these(filters: dict[str, Any], name: str, target: str | None) -> dict[str, Any]:
    """The filters after a click on one of the buttons above the table."""
    if name == "all":
        return {}
    if name in ("hurt", "helped"):
        how = "lessThan" if name == "hurt" else "greaterThan"
        return {**filters, f"score_{target}": {"filterType": "number", "type": how, "filter": 0}}
    return {**filters, STATUS: equal("text", name)}


def _asked(request: Mapping[str, Any]) -> Chosen:
    sort = [(one["colId"], one["sort"]) for one in request.get("sortModel") or []]
    return Chosen(request.get("filterModel") or {}, tuple(sort))


def _query(round: Round, chosen: Chosen, shown: list[str], by: str | None) -> dict[str, Any]:
    """What the address says: only what is not as it is at first."""
    now = [RECORD, *(shown or [])]
    return {
        "target": round.target if round.target != next(iter(round.targets), None) else None,
        "by": by if by != next(iter(choices(round)), None) else None,
        "filter": json.dumps(chosen.filters) if chosen.filters else None,
        "sort": ",".join(f"{name}:{direction}" for name, direction in chosen.sort) or None,
        "columns": ",".join(now) if set(now) != set(columns.shown_of(round, None)) else None,
    }


def _said(chosen: Chosen, found: int, of: int) -> Any:
    """How many records there are, and why these."""
    text = f"{number(of)} records" if not chosen.filters else f"{number(found)} of {number(of)} records"
    why = " · ".join(filtering.words(chosen.filters))
    return dmc.Text([text, html.Span(f" · {components.text_of(why)}" if why else "", className="rs-why")], size="sm")
