"""`rollsight view`: look at runs in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from rollsight import explorer


def view(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")] = (Path("runs"),),
    /,
    *,
    port: Annotated[int, arg(metavar="N")] = 8050,
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1",
    allow_host: Annotated[tuple[str, ...], arg(metavar="NAME")] = (),
    prefix: Annotated[str, arg(metavar="PATH")] = "/",
    browser: Annotated[bool, arg(help_behavior_hint="")] = True,
) -> None:
    """Look at runs in a browser: curves, rounds, records, and whether the scores can be believed.

    Runs that are being trained are followed. Nothing is written, and nothing leaves this machine. Ctrl-C ends it.

    On another machine: ssh -L 8050:localhost:8050 MACHINE rollsight view RUN --no-browser

    Example: rollsight view runs/lander

    Args:
        runs: Run folders, or folders of runs.
        port: The port; the next free one where it is taken.
        host: Address to bind to. Any other than this machine's own asks browsers for a token.
        allow_host: Names besides localhost that it may be asked for, as behind a reverse proxy; asks for a token too.
        prefix: The path under which a reverse proxy shows it.
        browser: Only serve, and open no browser.
    """
    explorer.serve(runs, port=port, host=host, allow_hosts=allow_host, prefix=prefix, open_browser=browser)
