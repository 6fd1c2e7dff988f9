"""Who may ask: this machine's own browser, and others only with the token that the server printed at its start.

A page of another site must not read runs through a name that it points to 127.0.0.1 (DNS rebinding), and must not send
requests in the reader's name: so the host and the origin of every request are compared with where the server is.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from flask import Flask, Response, redirect, request

_COOKIE = "rollsight_token"
_LOCAL = ("localhost", "127.0.0.1", "::1")
_FRAMES = "'self' http://localhost:* http://127.0.0.1:* vscode-webview: https://*.googleusercontent.com"  # notebooks


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to the address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    """A token that nobody guesses, for the address bar."""
    return secrets.token_urlsafe(24)


def protect(
    server: Flask, script_hashes: Collection[str], *, hosts: Collection[str] = (), token: str | None = None
) -> None:
    """Refuse what is not from here, and forbid pages to load anything from elsewhere.

    Args:
        script_hashes: hashes of the app's own inline scripts, as a content security policy writes them.
        hosts: names that the server may be asked for besides this machine's own, without a port. Empty with a token:
            any, since a foreign page does not know the token.
        token: what a browser must show once, in the address, if it is not None.
    """
    allowed = {*_LOCAL, *(host.lower() for host in hosts)}

    @server.before_request
    def refuse() -> Response | None:
        host = (urlsplit(f"//{request.host}").hostname or "").lower()
        if host not in allowed and (token is None or hosts):
            return _refused(403, f"This server is not called {host!r}: start it with --host or --allow-host {host}.")
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
            return _refused(403, "A page of another site may not ask this server.")
        if (
            request.headers.get("Sec-Fetch-Site") == "cross-site"
            and request.headers.get("Sec-Fetch-Mode") != "navigate"
        ):
            return _refused(403, "A page of another site may not ask this server.")
        if token is None:
            return None
        if "token" in request.args:
            if not _equal(request.args["token"], token):
                return _refused(403, "This token is not valid: take the address that the server printed at its start.")
            answer = redirect(request.path)
            answer.set_cookie(_COOKIE, token, httponly=True, samesite="Strict")
            return answer  # type: ignore[return-value]
        if not _equal(request.cookies.get(_COOKIE, ""), token):
            return _refused(401, "A token is needed: open the address that the server printed at its start.")
        return None

    @server.after_request
    def headers(answer: Response) -> Response:
        scripts = " ".join(("'self'", *script_hashes))
        answer.headers["Content-Security-Policy"] = (
            f"default-src 'self'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
            f"font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
            f"frame-ancestors {_FRAMES}"
        )
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Referrer-Policy"] = "no-referrer"
        answer.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return answer


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _refused(code: int, sentence: str) -> Response:
    return Response(sentence, code, content_type="text/plain; charset=utf-8")
