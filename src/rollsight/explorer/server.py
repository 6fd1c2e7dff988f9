"""Serve the app: on this machine only unless told otherwise, from the first free port."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from werkzeug.serving import BaseWSGIServer, make_server

from rollsight.errors import OptionError, RollsightError
from rollsight.explorer import security
from rollsight.explorer.addresses import Address
from rollsight.explorer.app import create_app
from rollsight.explorer.context import Context
from rollsight.explorer.pages.runs import layout
from rollsight.explorer.reading import Reading

_TRIED = 20  # ports after the one that was asked for


class Server:
    """A running explorer. Close it, or use it in a `with` block.

    Attributes:
        url: the address to open, with the token where one is asked for.
    """

    def __init__(
        self,
        folders: Iterable[str | Path],
        *,
        port: int = 8050,
        host: str = "127.0.0.1",
        allow_hosts: Sequence[str] = (),
        prefix: str = "/",
    ) -> None:
        """
        Args:
            folders: runs, or folders of runs.
            port: 0 for any free one; the next free one where it is taken.
            host: address to bind to.
            allow_hosts: names besides localhost that it may be asked for.
            prefix: path under which a proxy shows it; the proxy may pass it on or cut it off.

        Raises:
            RollsightError: a folder is not one, or no port is free.
        """
        if not 0 <= port <= 65535:
            raise OptionError("{port} is not a port: give a number from 0 to 65535", port=port)
        prefix = f"/{prefix.strip('/')}/" if prefix.strip("/") else "/"
        local = security.is_local(host) and not allow_hosts
        token = None if local else security.new_token()
        names = tuple(allow_hosts) if security.is_local(host) else ()
        reading = Reading(folders)
        app = create_app(reading, prefix=prefix, hosts=names, token=token)
        application = app.server if prefix == "/" else _without_prefix(app.server, prefix)
        with contextlib.suppress(ImportError):
            import pandas  # noqa: F401 - pyarrow and plotly would import it in several threads at once, which fails
        self._server = _bound(host, port, application)
        shown = allow_hosts[0] if allow_hosts else f"{_bracketed(host)}:{self._server.port}"
        self.url = f"http://{shown}{prefix}" + (f"?token={token}" if token else "")
        self._thread = threading.Thread(target=self._server.serve_forever, name="rollsight-explorer", daemon=True)
        self._thread.start()
        # While a browser starts and loads the scripts: what the first page is made of.
        threading.Thread(target=_prepare, args=(Context(reading, prefix),), name="rollsight-first", daemon=True).start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.port)

    def wait(self) -> None:
        """Until it is closed, or Ctrl-C."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def serve(folders: Iterable[str | Path], *, open_browser: bool = True, **how: Any) -> None:
    """Serve until Ctrl-C. how: as `Server`.

    Raises:
        RollsightError: as `Server`.
    """
    with Server(folders, **how) as server:
        print(f"look at it:  {server.url}\nCtrl-C ends it", flush=True)
        if open_browser and not _opened(server.url):
            print("no browser could be opened: open the address yourself", file=sys.stderr)
        try:
            server.wait()
        except KeyboardInterrupt:
            print()


def _prepare(context: Context) -> None:
    """Make the first page once: what it reads and imports is there when it is asked for."""
    with contextlib.suppress(RollsightError):  # the page says it
        layout(context, Address("runs"))


def _opened(url: str) -> bool:
    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False


def _bound(host: str, port: int, application: Any) -> BaseWSGIServer:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request says nothing to anybody
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for tried in [port] if port == 0 else range(port, min(port + _TRIED, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind((host, tried))
                listening.listen()
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    continue
                raise RollsightError(
                    f"{host} is not an address of this machine ({error.strerror}): give another --host"
                ) from error
            return make_server(host, tried, application, threaded=True, fd=listening.fileno())
    raise RollsightError(f"the ports {port} to {port + _TRIED - 1} are all taken: give another with --port")


def _without_prefix(application: Any, prefix: str) -> Any:
    """The application behind a proxy that passes the prefix on; without it where the proxy cuts it off."""

    def passed(environ: dict[str, Any], start: Any) -> Any:
        path = environ.get("PATH_INFO", "")
        if path.startswith(prefix) or f"{path}/" == prefix:
            environ = {**environ, "PATH_INFO": "/" + path[len(prefix) :]}
        return application(environ, start)

    return passed


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else ("localhost" if host == "127.0.0.1" else host)
