"""One HTML file with everything inside: text, pictures, tables, and figures whose script is in it once, compressed."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import plotly.graph_objects as go

from rollsight.escaping import plain_html
from rollsight.explorer import plotlyjs
from rollsight.explorer.theme import DROPPED, GRAPH_CONFIG, HELPED, HURT, INVALID

# The script is unpacked by the browser itself, then each figure is drawn from the JSON that lies next to its place.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)
_DRAW = """
(async () => {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  for (const place of document.querySelectorAll("[data-figure]")) {
    const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
    await Plotly.newPlot(place, figure.data, figure.layout, CONFIG);
  }
  document.body.dataset.drawn = "yes";
})();
"""


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        title: its heading; "" for none.
        body: HTML, in which foreign text is escaped.
    """

    title: str
    body: str


class Figures:
    """Figures of a document: each becomes a place in the text, and its data a block that nothing executes."""

    def __init__(self) -> None:
        self._blocks: list[str] = []

    def place(self, figure: go.Figure, caption: str) -> str:
        """HTML of the figure with its caption."""
        name = f"figure-{len(self._blocks) + 1}"
        data = json.loads(figure.to_json())
        text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no tag can end the block
        self._blocks.append(f'<script type="application/json" id="{name}">{text}</script>')
        height = figure.layout.height or 300
        return (
            f'<figure><div data-figure="{name}" style="height:{height}px"></div>'
            f"<figcaption>{plain_html(caption)}</figcaption></figure>"
        )

    def scripts(self) -> str:
        """The blocks, and the script that draws them; nothing where there is no figure."""
        if not self._blocks:
            return ""
        packed = base64.b64encode(plotlyjs.packed()).decode()
        draw = _DRAW.replace("CONFIG", json.dumps(GRAPH_CONFIG))
        return "\n".join(
            [
                *self._blocks,
                f'<script type="application/octet-stream" id="plotly">{packed}</script>',
                f"<script>{draw}</script>",
            ]
        )


def document(title: str, sections: Sequence[Section], figures: Figures) -> str:
    """The file's text."""
    style = files(__package__).joinpath("style.css").read_text("utf-8")
    for name, colour in (("HELPED", HELPED), ("HURT", HURT), ("DROPPED", DROPPED), ("INVALID", INVALID)):
        style = style.replace(name, colour)
    parts = [f"<h2>{plain_html(one.title)}</h2>\n{one.body}" if one.title else one.body for one in sections]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{plain_html(title)}</title>
<style>{style}</style></head><body>
<main>
{chr(10).join(parts)}
</main>
{figures.scripts()}
</body></html>
"""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """An HTML table of cells that are HTML already. numbers: columns that are aligned to the right."""
    kind = [' class="number"' if column in numbers else "" for column in range(len(headings))]
    head = "".join(f"<th{kind[i]}>{plain_html(name)}</th>" for i, name in enumerate(headings))
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind[i]}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(png: bytes, alt: str, width: int = 150) -> str:
    """An image inside the file."""
    data = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{plain_html(alt)}" width="{width}">'
