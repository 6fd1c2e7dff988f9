"""The web app: one frame around all pages, and one callback that shows the page of the address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from dash.exceptions import DependencyException

from rollsight import __version__
from rollsight.errors import RollsightError
from rollsight.explorer import components, pages, plotlyjs, security
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.reading import Reading
from rollsight.runs import is_language

_CHUNKS = ("_dash-component-suites/dash/dcc/async-graph.js", "_dash-component-suites/dash_ag_grid/async-community.js")


def create_app(reading: Reading, *, prefix: str = "/", hosts: tuple[str, ...] = (), token: str | None = None) -> Dash:
    """The app over these runs, for any WSGI server as `app.server`.

    Args:
        prefix: the path under which a reverse proxy shows it, with slashes at both ends.
        hosts: names it may be asked for besides localhost.
        token: what a browser must show once, or None.
    """
    app = Dash(
        __name__,
        title="Rollsight",
        update_title=None,
        assets_folder=str(Path(__file__).parent / "assets"),
        suppress_callback_exceptions=True,
        serve_locally=True,
        requests_pathname_prefix=prefix,
        routes_pathname_prefix="/",
        compress=False,
        add_log_handler=False,
    )
    # Dash puts its scripts into a footer, which readers of screens would announce next to the page's own.
    index = app.index_string.replace("<footer>", "<div hidden>").replace("</footer>", "</div>")
    index = index.replace("<html>", '<html lang="en">')
    app.index_string = index.replace("{%css%}", f"{_early(prefix)}{{%css%}}")
    plotlyjs.serve(app.server)
    context = Context(reading, prefix)
    app.layout = lambda: _frame(context)
    _register(app, context)
    for page in pages.PAGES.values():
        if page.register is not None:
            page.register(app, context)
    app.server.register_error_handler(DependencyException, lambda _: ("There is no such file.", 404))
    security.protect(app.server, app.csp_hashes(), hosts=hosts, token=token)
    return app


def _early(prefix: str) -> str:
    """Scripts that a browser fetches at once, which it would ask for only when a page has come."""
    return "".join(f'<link rel="preload" as="script" href="{prefix}{path}">' for path in (plotlyjs.PATH, *_CHUNKS))


def _frame(context: Context) -> Any:
    """What stands around every page."""
    brand = dcc.Link(
        dmc.Group([html.Span(className="rs-mark"), dmc.Text("Rollsight", fw=700)], gap=8),
        href=context.prefix,
        className="rs-brand",
        title="All runs",
    )
    picker = dmc.Select(
        id="run-picker",
        data=[],
        placeholder="Choose a run",
        searchable=True,
        size="xs",
        clearable=True,
        className="rs-picker",
        nothingFoundMessage="No run of this name",
        maxDropdownHeight=320,
        **{"aria-label": "Run"},
    )
    right = dmc.Group(
        [
            html.Span(id="live", className="rs-live"),
            dmc.Tooltip(
                dmc.ActionIcon("?", id="help-button", variant="subtle", size="sm", **{"aria-label": "Keys"}),
                label="← and → or J and K: previous and next · / search · ? this",
                multiline=True,
            ),
            dmc.ColorSchemeToggle(
                lightIcon=html.Span("☀"), darkIcon=html.Span("☾"), size="sm", variant="subtle",
                **{"aria-label": "Light or dark"},
            ),
        ],
        gap="xs",
        wrap="nowrap",
    )  # fmt: skip
    header = dmc.AppShellHeader(
        dmc.Group(
            [
                dmc.Group(
                    [brand, picker, html.Nav(id="run-tabs", className="rs-tabs", **{"aria-label": "Pages"})],
                    gap="md",
                    wrap="nowrap",
                    className="rs-head",
                ),
                right,
            ],
            justify="space-between",
            h="100%",
            px="md",
            wrap="nowrap",
        )
    )
    main = dmc.AppShellMain(html.Div(id="page", className="rs-page", children=components.loading()))
    shell = dmc.AppShell([header, main], header={"height": 48}, padding="md")
    return dmc.MantineProvider(
        [
            dcc.Location(id="url", refresh="callback-nav"),
            dcc.Store(id="query"),  # what is chosen on the page; a script keeps the address bar equal to it
            dcc.Store(id="keys", data={}),  # key -> address
            dcc.Interval(id="poll", interval=components.POLL),
            dmc.NotificationContainer(id="notices"),
            shell,
            html.Footer(f"Rollsight {__version__} · read only · nothing leaves this machine", className="rs-footer"),
        ],
        defaultColorScheme="auto",
        theme={
            "primaryColor": "blue",
            "primaryShade": 8,
            "fontFamily": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
            "fontSizes": {"xs": "12px", "sm": "13px", "md": "14px"},
            "headings": {"fontWeight": "600"},
        },
    )


def _register(app: Dash, context: Context) -> None:
    @app.callback(
        Output("page", "children"),
        Output("run-tabs", "children"),
        Output("run-picker", "data"),
        Output("run-picker", "value"),
        Output("keys", "data"),
        Input("url", "pathname"),
        Input("url", "search"),
    )
    def show(path: str, search: str) -> tuple[Any, ...]:
        address = context.address(path, search)
        names = context.reading.names()
        page, keys = _page(context, address)
        run = address.run if address is not None and address.run in names else None
        return page, _tabs(context, address, run), names, run, keys

    @app.callback(
        Output("url", "href"), Input("run-picker", "value"), State("url", "pathname"), prevent_initial_call=True
    )
    def pick(name: str | None, path: str) -> Any:
        shown = context.address(path, "")
        if shown is not None and shown.run == (name or ""):
            return no_update
        if name is None:  # cleared by hand; the page of a run that is not there has nothing chosen, and stays
            return context.prefix if shown is not None and shown.run in context.reading.names() else no_update
        return context.href(Address("overview", name))

    @app.callback(
        Output("live", "children"), Output("live", "className"), Input("poll", "n_intervals"), State("url", "pathname")
    )
    def look(_: int, path: str) -> tuple[str, str]:
        address = context.address(path, "")
        if address is None or not address.run:
            return "", "rs-live"
        try:
            state = context.state(address.run)
        except RollsightError:
            return "", "rs-live"
        return {"running": "training", "ended": "", "stopped": "stopped early"}[state], f"rs-live rs-{state}"

    app.clientside_callback(
        ClientsideFunction("rollsight", "keepAddress"),
        Output("query", "id"),
        Input("query", "data"),
        prevent_initial_call=True,
    )
    app.clientside_callback(ClientsideFunction("rollsight", "keepKeys"), Output("keys", "id"), Input("keys", "data"))


def _page(context: Context, address: Address | None) -> tuple[Any, dict[str, str]]:
    """The page of an address, and where its keys lead."""
    page = None if address is None else pages.PAGES.get(address.page)
    if page is None or address is None:
        return components.empty("There is no such page", "Start from the list of runs."), {}
    try:
        keys = page.keys(context, address) if page.keys is not None else {}
        return page.layout(context, address), {key: context.href(to) for key, to in keys.items()}
    except RollsightError as error:
        return components.failed(str(error)), {}


def _tabs(context: Context, address: Address | None, run: str | None) -> list[Any]:
    """Links to the pages of the run, or to those of several runs."""
    if address is None or run is None:
        shown = [("Runs", Address("runs")), ("Compare", Address("compare"))]
        return [_tab(context, label, to, address is not None and address.page == to.page) for label, to in shown]
    try:
        language = is_language(context.reading.metadata(run))
        last = context.reading.round_numbers(run)[-1:]
    except RollsightError:
        language, last = False, []
    tabs = [("Overview", Address("overview", run))]
    number = address.round or (last[0] if last else None)
    if number is not None:
        tabs.append(("Round", Address("round", run, number)))
    if language:
        tabs.append(("Prompts", Address("prompts", run)))
    tabs += [
        ("Findings", Address("findings", run)),
        ("Behaviour", Address("behaviour", run)),
        ("Culprits", Address("culprits", run)),
        ("Trust", Address("trust", run)),
        ("Files", Address("files", run)),
    ]
    return [
        _tab(context, label, to, address.page == to.page or (to.page == "round" and address.page == "record"))
        for label, to in tabs
    ]


def _tab(context: Context, label: str, address: Address, active: bool) -> Any:
    current = {"aria-current": "page"} if active else {}
    return html.Span(
        dcc.Link(label, href=context.href(address), className="rs-tab rs-active" if active else "rs-tab"), **current
    )
