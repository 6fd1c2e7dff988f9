"""Interactive pages: Plotly figures under headings in one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from rollsight.escaping import plain_html
from rollsight.runs import whole_file

# Plotly's own "share" button would upload the data to a server.
_CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False, "plotlyServerURL": ""}
_SHOWN = 8  # numbers of an observation that a hover text shows
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 32px auto; max-width: 1100px; padding: 0 20px; color: #222 }}
h1 {{ font-size: 22px; margin: 0 0 4px }} h2 {{ font-size: 17px; margin: 36px 0 2px }}
p {{ margin: 0 0 8px; color: #555; max-width: 85ch }}
</style>
<script>{script}</script>
</head><body>
<h1>{title}</h1>
<p>{lead}</p>
{panels}
</body></html>
"""


@dataclass(frozen=True, eq=False)
class Panel:
    """One figure of a page.

    name: unique on the page, of letters.
    heading: title above the figure.
    caption: what is to be seen, in a sentence or two.
    figure: the interactive figure.
    """

    name: str
    heading: str
    caption: str
    figure: go.Figure


def write_page(path: Path, title: str, lead: str, panels: Sequence[Panel]) -> Path:
    """Write the panels below each other, with Plotly's script (5 MB) inside the file.

    Raises:
        RollsightError: the file cannot be written.
    """
    content = _PAGE.format(
        title=plain_html(title), lead=plain_html(lead), script=get_plotlyjs(), panels="\n".join(map(_section, panels))
    )
    with whole_file(path) as temporary:
        temporary.write_text(content, "utf-8")
    return path


def _section(panel: Panel) -> str:
    drawn = panel.figure.to_html(full_html=False, include_plotlyjs=False, div_id=panel.name, config=_CONFIG)
    return f"<h2>{plain_html(panel.heading)}</h2>\n<p>{plain_html(panel.caption)}</p>\n{drawn}"


def dress(figure: go.Figure, height: int = 420, **layout: Any) -> go.Figure:
    """The figure in the style of all pages; height in pixels, the width is the page's."""
    return figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 70, "r": 20, "t": 40, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#333333"},
        hoverlabel={"align": "left", "bgcolor": "white", "font": {"color": "#222222"}},
        # To the left: the buttons appear on the right.
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        **layout,
    )


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], name: str, **options: Any) -> go.Scatter:
    """A shaded band between two lines over x."""
    style = {"fill": "toself", "fillcolor": "rgba(138,143,152,0.25)", "line": {"width": 0}, "hoverinfo": "skip"}
    outline = {"x": [*x, *reversed(x)], "y": [*low, *reversed(high)], "mode": "lines"}
    return go.Scatter(**outline, **style, name=name, **options)


def short(value: Any) -> str:
    """A number, or the first few of a list, as hover texts show them; other values without markup."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        more = ", …" if len(value) > _SHOWN else ""
        return f"[{', '.join(short(one) for one in value[:_SHOWN])}{more}]"
    return plain_html(str(value))
