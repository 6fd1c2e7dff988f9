"""Plotly's script in its cartesian build: the npm package plotly.js-cartesian-dist-min 4.1.1 (MIT), gzipped.

It draws all kinds of figures that are used here, and a browser reads it in a third of the time that the whole takes.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from flask import Flask, Response, request

TRACES = ("bar", "box", "heatmap", "histogram", "scatter", "violin")  # some of the kinds of trace that the build draws
PATH = "_dash-component-suites/plotly/package_data/plotly.min.js"  # where Dash's graphs look for the script


@cache
def packed() -> bytes:
    """The script, gzipped."""
    return files(__package__).joinpath("plotly-cartesian.min.js.gz").read_bytes()


def serve(server: Flask) -> None:
    """Answer with this build where Dash would give the whole."""

    def answer() -> Response:
        script = Response(packed(), mimetype="text/javascript", headers={"Content-Encoding": "gzip"})
        script.add_etag()
        script.cache_control.no_cache = True  # the address names no version: a browser asks whether it changed
        script.make_conditional(request)
        return script

    server.add_url_rule(f"/{PATH}", "plotlyjs", answer)
