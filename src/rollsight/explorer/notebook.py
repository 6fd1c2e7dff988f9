"""The explorer in a notebook's cell: Jupyter, VS Code, Colab."""

from __future__ import annotations

import html
import sys
from pathlib import Path

from rollsight.explorer.server import Server

_servers: dict[Path, Server] = {}  # one for each run folder, until the kernel ends


class View:
    """Shown by a notebook as the app. Elsewhere: open `url` in a browser.

    Attributes:
        url: the address of the run's page.
        height: of the cell, in pixels.
    """

    def __init__(self, run: Path, height: int) -> None:
        run = run.resolve()
        if run not in _servers:
            _servers[run] = Server([run], port=0)
        server = _servers[run]
        self.url = server.url
        self.height = height
        self._port = server.port
        # VS Code forwards ports by itself, Colab has a way of its own; a plain kernel elsewhere is reached so.
        self._elsewhere = f"a kernel on another machine: ssh -L {self._port}:localhost:{self._port} MACHINE"

    def __repr__(self) -> str:
        return f"{self.url}: open it in a browser ({self._elsewhere})"

    def _repr_html_(self) -> str:
        if "google.colab" in sys.modules:  # its notebooks cannot reach the kernel's localhost
            from google.colab import output  # type: ignore[import-untyped, import-not-found, unused-ignore]

            output.serve_kernel_port_as_iframe(self._port, height=str(self.height))
            return ""
        url = html.escape(self.url, quote=True)
        style = "border:1px solid #8888;border-radius:8px"
        return (
            f'<iframe src="{url}" width="100%" height="{self.height}" style="{style}"></iframe>'
            f'<p><a href="{url}" target="_blank">{url}</a> <small>Empty? {html.escape(self._elsewhere)}</small></p>'
        )
