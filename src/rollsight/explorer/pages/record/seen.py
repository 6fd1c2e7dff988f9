"""What the agent saw, or what it was asked and wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html

from rollsight.environments.features import observation_features
from rollsight.explorer import components
from rollsight.explorer.rounds import Round
from rollsight.explorer.theme import number

_NUMBERS = 24  # of an observation
_OPEN = 10  # numbers without a name that are shown at once
_TEXT = 20_000  # characters of a text


def layout(round: Round, record: int, metadata: Mapping[str, Any]) -> Any:
    """The observation before the action; of language models the prompt and the completion."""
    if round.has("completion"):
        return components.card("Prompt and completion", *_texts(round, record))
    draw = dmc.Button("Play the episode again to draw it", id="record-draw", size="xs", variant="light", display="none")
    picture = dcc.Loading(html.Div(id="record-picture", className="rs-picture"), type="dot", delay_show=400)
    return components.card(
        "What the agent saw", picture, dmc.Box(draw, mb=6), _numbers(round, record, str(metadata.get("env") or ""))
    )


def _texts(round: Round, record: int) -> list[Any]:
    parts: list[Any] = []
    for name in ("prompt", "completion"):
        if not round.has(name):
            continue
        text = round.table[name][record].as_py()
        parts.append(dmc.Text(name, size="xs", c="dimmed", mt=6 if parts else 0))
        if not text:
            parts.append(dmc.Text("(empty)", size="sm", c="dimmed"))
            continue
        cut = [dmc.Text(f"{number(len(text))} characters, the first {number(_TEXT)} here", size="xs", c="dimmed")]
        parts += [
            html.Div(components.rule(components.text_of(text[:_TEXT])), className="rs-record-text"),
            *(cut if len(text) > _TEXT else []),
        ]
    return parts


def _numbers(round: Round, record: int, env: str) -> Any:
    """The observation's numbers, by name where it is a dictionary."""
    columns = [name for name in round.table.column_names if name == "obs" or name.startswith("obs.")]
    if not columns:
        return dmc.Text("The run does not store observations.", size="sm", c="dimmed")
    rows: list[tuple[str, str]] = []
    more = 0
    for column in columns:
        value = round.table[column][record].as_py()
        label = column.removeprefix("obs.")
        if value is None:
            rows.append((label, "not stored: of large observations only a sample is kept"))
            continue
        flat = value if isinstance(value, list) else [value]
        more += max(0, len(flat) - _NUMBERS)
        known = observation_features(env, len(flat)) if column == "obs" else None
        for place, one in enumerate(flat[:_NUMBERS]):
            name = f"{label}[{place}]" if len(flat) > 1 else label
            value = number(one, 4) if isinstance(one, int | float) else json.dumps(one)
            if known is not None:
                name, value = known[place].name, f"{value} {known[place].unit}".strip()
            rows.append((name, value))
    cells = [
        dmc.Group(
            [dmc.Text(components.text_of(name), size="xs", c="dimmed"), dmc.Text(components.text_of(value), size="sm")],
            justify="space-between", gap=8, className="rs-feature",
        )
        for name, value in rows
    ]  # fmt: skip
    named = all(not name.startswith("obs[") for name, _ in rows)
    said = [dmc.Text(f"and {number(more)} further numbers", size="xs", c="dimmed", mt=4)] if more else []
    body = [dmc.SimpleGrid(cells, cols={"base": 1, "sm": 2}, spacing=16, verticalSpacing=2), *said]
    if named or len(rows) <= _OPEN:
        return html.Div(body)
    return html.Details([html.Summary(f"Its {number(len(rows) + more)} numbers"), *body], className="rs-queries")
