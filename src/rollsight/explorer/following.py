"""A page of a run that is being written: its parts are made anew where rows have come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dash import Dash, Input, Output, State
from dash.exceptions import PreventUpdate

from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context


def follow(
    app: Dash, context: Context, page: str, parts: Sequence[Output], made: Callable[[Address], Sequence[Any]]
) -> None:
    """Make the parts of a page with a `components.follower` anew whenever its run's change token differs.

    page: the beginning of its ids. parts: what is made anew. made: gives a value for each.
    """

    @app.callback(
        *parts,
        Output(f"{page}-token", "data"),
        Input(f"{page}-poll", "n_intervals"),
        State(f"{page}-token", "data"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def look(_: int, shown: str, path: str) -> tuple[Any, ...]:
        address = context.address(path, "")
        if address is None or (token := context.reading.token(address.run)) == shown:
            raise PreventUpdate
        return *made(address), token
