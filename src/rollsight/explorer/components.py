"""Parts that several pages share: a heading, a card with a figure, a number under its name, an empty place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
import plotly.graph_objects as go
from dash import dcc, html

from rollsight.escaping import visible
from rollsight.explorer.addresses import Address, path_of
from rollsight.explorer.theme import DROPPED, GRAPH_CONFIG, HELPED, HURT, INVALID, number
from rollsight.explorer.trust import Trust

# Of every table. Tab leaves its cells, which arrow keys go through; Enter opens a row (assets/rollsight.js).
GRID_OPTIONS = {
    "rowHeight": 32, "headerHeight": 34, "tooltipShowDelay": 300, "animateRows": False,
    "tabToNextCell": {"function": "false"},
}  # fmt: skip
POLL = 2_000  # milliseconds between looks for new rounds
# The colours of text, which must differ more from the page than lines do.
_TEXT = {HELPED: "var(--rs-helped)", HURT: "var(--rs-hurt)", DROPPED: "var(--rs-dropped)", INVALID: "var(--rs-invalid)"}
Component = Any  # Dash's own base class is untyped


def text_of(value: object) -> str:
    """Foreign text for the page: what cannot be seen is spelt out. React escapes markup by itself."""
    return visible(str(value), lines=True)


def heading(title: str, lead: Component = None, right: Component = None) -> Component:
    """A page's first line; lead: a sentence below it; right: what stands at the other end."""
    left = dmc.Stack(
        [dmc.Title(title, order=1, size="h3"), *([dmc.Text(lead, c="dimmed", size="sm")] if lead else [])], gap=2
    )
    return dmc.Group([left, right], justify="space-between", align="flex-start", mb="sm", wrap="wrap")


def card(
    title: str, *children: Component, note: str | None = None, right: Component = None, **options: Any
) -> Component:
    """A titled box. note: a sentence that says what is to be seen."""
    top = dmc.Group(
        [dmc.Title(title, order=2, size="h5"), *([right] if right is not None else [])], justify="space-between", mb=4
    )
    lead = [dmc.Text(note, size="xs", c="dimmed", mb=6)] if note else []
    return dmc.Paper([top, *lead, *children], withBorder=True, radius="md", p="sm", className="rs-card", **options)


def graph(name: str, figure: go.Figure, **options: Any) -> Component:
    """A figure in its place. Its height is set beforehand, so that nothing jumps while it loads."""
    height = f"{figure.layout.height or 300}px"
    # The box around it, because Dash shows nothing of this height until the script of the figures is there.
    drawn = dcc.Graph(id=name, figure=figure, config=GRAPH_CONFIG, style={"height": height}, **options)
    return html.Div(drawn, style={"minHeight": height})


def fact(name: str, value: Component, hint: str | None = None, colour: str | None = None) -> Component:
    """A number under its name; hint: what it means, shown on hover; colour: one of the theme's meanings."""
    label = dmc.Text(name, size="xs", c="dimmed")
    body = dmc.Stack(
        [label, dmc.Text(value, fw=600, size="sm", style={"color": _TEXT[colour]} if colour else {})], gap=0
    )
    return dmc.Tooltip(body, label=hint, multiline=True, w=260, position="bottom") if hint else body


def score(value: float, **options: Any) -> Component:
    """A score in the colour of its sign."""
    sign = "rs-hurt" if value < 0 else "rs-helped" if value > 0 else None
    return dmc.Text(number(value), size="sm", className=sign, **options)


def facts(*parts: Component) -> Component:
    """Numbers in a row that wraps."""
    return dmc.Group(list(parts), gap="lg", wrap="wrap")


def empty(title: str, what_to_do: str, command: str | None = None) -> Component:
    """A place with nothing to show: why, and what to do."""
    parts: list[Component] = [
        dmc.Text(title, fw=600),
        dmc.Text(what_to_do, c="dimmed", size="sm", ta="center", maw=560),
    ]
    if command:
        parts.append(copied(command))
    return dmc.Center(dmc.Stack(parts, align="center", gap="xs"), p="xl", className="rs-empty", mih=160)


def copied(text: str) -> Component:
    """A command or query with a button that copies it."""
    return dmc.Group(
        [
            dmc.Code(text_of(text), className="rs-command"),
            dcc.Clipboard(content=text, title="Copy", className="rs-copy"),
        ],
        gap=6,
        wrap="nowrap",
    )


def link(label: Component, address: Address, prefix: str, **options: Any) -> Component:
    """A link to another page, without loading the whole page again. prefix: the proxy's, with a slash at its end."""
    return dcc.Link(label, href=prefix.rstrip("/") + path_of(address), className="rs-link", **options)


def problems(sentences: Sequence[str]) -> Component:
    """What reading said of missing or damaged files: never hidden."""
    if not sentences:
        return None
    items = [dmc.ListItem(text_of(sentence)) for sentence in sentences]
    return dmc.Alert(dmc.List(items, size="sm"), title="Not everything of this run is there", color="orange", mb="sm")


def rule(children: Component) -> Component:
    """A block of preformatted text that wraps."""
    return html.Pre(children, className="rs-text")


def loading() -> Component:
    """Grey boxes where a page will be."""
    return dmc.Stack([dmc.Skeleton(h=28, w=320), dmc.Skeleton(h=220), dmc.Skeleton(h=320)], gap="sm")


def failed(sentence: str) -> Component:
    """What cannot be shown, and why."""
    return dmc.Alert(text_of(sentence), title="This cannot be shown", color="red", mt="md")


def trust_line(trust: Trust) -> Component:
    """Whether the scores on the page can be believed, in one sentence on top of it."""
    colour = {"believable": "teal", "weak": "yellow", "noise": "red", "unknown": "gray"}[trust.verdict]
    label = {"believable": "Believable", "weak": "Sums only", "noise": "Mostly noise", "unknown": "Not known"}[
        trust.verdict
    ]
    sentence = trust.sentence[:1].upper() + trust.sentence[1:] + (f" {trust.caution}" if trust.caution else "")
    return dmc.Group(
        [dmc.Badge(label, color=colour, variant="light", radius="sm"), dmc.Text(sentence, size="sm", c="dimmed")],
        gap="xs", mb="sm", wrap="nowrap", className="rs-trust",
    )  # fmt: skip


def follower(page: str, token: str) -> Component:
    """Looks for new rows while the page is shown: `{page}-poll` ticks, `{page}-token` is the change token of what is
    shown. A page's callbacks may name only parts of the page itself."""
    return html.Div([dcc.Interval(id=f"{page}-poll", interval=POLL), dcc.Store(id=f"{page}-token", data=token)])


def choices(path: str, **chosen: str | None) -> dict[str, Any]:
    """What a callback puts into `query`: what is chosen now on the page at this path of the address bar. It is ignored
    where the reader has left for another page meanwhile. None stands for no choice."""
    return {"path": path, "chosen": chosen}
