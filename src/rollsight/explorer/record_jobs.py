"""A page that computes something about one record on request: form, offer, progress, and their callbacks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.exceptions import PreventUpdate

from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.jobs import Progress
from rollsight.runs import spell

_TICK = 700  # milliseconds between looks at a computation


def parsed(record: str) -> tuple[int, int, int] | None:
    """Round, environment and step of ROUND:ENV:STEP; None where it is something else."""
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9}):(\d{1,9})", record)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def without_snapshots() -> Any:
    """What a page says of a run whose earlier rounds cannot be scored."""
    return components.empty(
        "This run has no snapshots",
        "Scoring earlier rounds needs the rounds frozen: train with snapshots of all rounds.",
        "rollsight train CartPole-v1 --snapshots all --out runs/cartpole",
    )


def no_snapshot(what: str, stored: Sequence[int]) -> Any:
    """What a card says that needs the snapshot of a round without one. stored: the rounds that have one."""
    where = f"Rounds with one: {spell(stored)}." if stored else "This run has none."
    return dmc.Text(f"{what} {where}", size="sm", c="dimmed")


def form(page: str, rounds: Sequence[int], record: str) -> list[Any]:
    """Fields for a record of one of these rounds, and the button that shows it."""
    round, env, step = parsed(record) or (rounds[-1], 0, 0)
    return [
        dmc.Select(
            id=f"{page}-round", label="Round", size="xs", w=110, searchable=True, value=str(round),
            data=[str(one) for one in rounds],
        ),
        dmc.NumberInput(id=f"{page}-env", label="Environment", size="xs", w=110, min=0, value=env),
        dmc.NumberInput(id=f"{page}-step", label="Step", size="xs", w=110, min=0, value=step),
        dmc.Button("Show", id=f"{page}-show", size="xs", mt=22),
    ]  # fmt: skip


def place(part: str, result: Any, progress: Progress) -> Any:
    """Where the result stands; looked at until its computation is over. part: the beginning of its ids."""
    running = progress.state == "running"
    return html.Div(
        [
            dcc.Interval(id=f"{part}-tick", interval=_TICK, disabled=not running),
            html.Div(id=f"{part}-result", children=result),
        ]
    )


def offer(
    part: str, progress: Progress, what: str, doing: str, command: str = "", *, title: str = "", button: str = "Compute"
) -> Any:
    """How far the computation is, or the offer to begin it.

    what: what it does, in sentences. doing: what is being done, with {done} and {total}, the steps that are done
    and all. command: the same in a
    terminal. title: of the card; by default whether it is computed.
    """
    if progress.state == "running":
        said = doing.format(done=progress.done, total=progress.total) if progress.total else "Loading"
        share = 100 * progress.done / progress.total if progress.total else 100
        return components.card(
            title or "Computing",
            dmc.Text(said, size="sm", mb=6),
            dmc.Progress(value=share, animated=True, striped=True, **{"aria-label": said}),
        )
    or_by_hand = [dmc.Text("or", size="sm"), components.copied(command)] if command else []
    return components.card(
        title or "Not computed yet",
        *([components.failed(progress.error)] if progress.state == "failed" else []),
        dmc.Text(f"{what} The result is kept next to the run.", size="sm"),
        dmc.Group([dmc.Button(button, id=f"{part}-compute", size="xs"), *or_by_hand], mt="xs"),
    )


def register_offer(
    app: Dash,
    context: Context,
    part: str,
    result: Callable[[Context, Address], Any],
    begin: Callable[[Address], None],
    progress: Callable[[Address], Progress],
) -> None:
    """The callbacks of a `place` whose result belongs to the address of the page.

    result: what stands there. begin: starts the computation. progress: how far it is.
    """

    def asked(path: str) -> Address:
        if (address := context.address(path, "")) is None:
            raise PreventUpdate
        return address

    @app.callback(
        Output(f"{part}-tick", "disabled"),
        Input(f"{part}-compute", "n_clicks"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def start(clicks: int | None, path: str) -> bool:
        if not clicks:
            raise PreventUpdate
        begin(asked(path))
        return False

    @app.callback(
        Output(f"{part}-result", "children"),
        Output(f"{part}-tick", "disabled", allow_duplicate=True),
        Input(f"{part}-tick", "n_intervals"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def look(_: int, path: str) -> Any:
        address = asked(path)
        running = progress(address).state == "running"
        return result(context, address), not running


def register(
    app: Dash,
    context: Context,
    page: str,
    result: Callable[[Context, Address], Any],
    begin: Callable[[Address, str], None],
    progress: Callable[[Address, str], Progress],
) -> None:
    """The callbacks of form, button and progress.

    result: what stands below the form at an address with `record`. begin: starts the computation for a record.
    progress: how far it is.
    """
    fields = [State(f"{page}-{name}", "value") for name in ("round", "env", "step")]

    def asked(path: str, where: Sequence[Any]) -> tuple[Address, str]:
        address, record = context.address(path, ""), ":".join(map(str, where))
        if address is None or parsed(record) is None:
            raise PreventUpdate
        return address, record

    @app.callback(
        Output(f"{page}-result", "children"),
        Output(f"{page}-tick", "disabled"),
        Output("query", "data", allow_duplicate=True),
        Input(f"{page}-show", "n_clicks"),
        State("url", "pathname"),
        *fields,
        prevent_initial_call=True,
    )
    def show(clicks: int | None, path: str, *where: Any) -> Any:
        if not clicks:
            raise PreventUpdate
        if parsed(":".join(map(str, where))) is None:
            return components.failed("Choose a round, an environment and a step."), no_update, no_update
        address, record = asked(path, where)
        running = progress(address, record).state == "running"
        return result(context, address.at(record=record)), not running, components.choices(path, record=record)

    @app.callback(
        Output(f"{page}-tick", "disabled", allow_duplicate=True),
        Input(f"{page}-compute", "n_clicks"),
        State("url", "pathname"),
        *fields,
        prevent_initial_call=True,
    )
    def start(clicks: int | None, path: str, *where: Any) -> Any:
        if not clicks:
            raise PreventUpdate
        begin(*asked(path, where))
        return False

    @app.callback(
        Output(f"{page}-result", "children", allow_duplicate=True),
        Output(f"{page}-tick", "disabled", allow_duplicate=True),
        Input(f"{page}-tick", "n_intervals"),
        State("url", "pathname"),
        *fields,
        prevent_initial_call=True,
    )
    def tick(_: int, path: str, *where: Any) -> Any:
        address, record = asked(path, where)
        running = progress(address, record).state == "running"
        return result(context, address.at(record=record)), not running
