"""Prompts and completions as people read them: token by token, message by message, long ones folded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from dash import html

from rollsight.conversations import in_full, messages_of
from rollsight.explorer import components
from rollsight.explorer.figures.tokens import Scale
from rollsight.explorer.theme import number

FOLDED = 1_500  # characters that are shown of a long text
FOLDED_TOKENS = 200


def said(text: str, whole: bool = False) -> Any:
    """A prompt or completion. A conversation is shown by role, with tools' results and system messages folded."""
    if messages_of(text) is None:
        return components.rule(components.text_of(_start(text, whole)))
    return html.Div([_message(who, what, whole) for who, what in in_full(text)])


def is_long(text: str, tokens: Sequence[str] | None) -> bool:
    """Whether `said` or `token_spans` leave something out unless asked for the whole."""
    if messages_of(text) is not None:
        return any(len(what) > FOLDED for _, what in in_full(text))
    return len(text) > FOLDED or (tokens is not None and len(tokens) > FOLDED_TOKENS)


def token_spans(
    texts: Sequence[str],
    values: Sequence[float | None] | None,
    scale: Scale | None,
    whole: bool = False,
    counted: Sequence[bool] | None = None,
) -> Any:
    """Tokens with the colours of their values, where they have some; position and value show on hover.

    counted: whether each is in the loss; the others are dimmed.
    """
    shown = len(texts) if whole else _fitting(texts)
    spans = []
    for i, text in enumerate(texts[:shown]):
        value = float("nan") if values is None or values[i] is None else float(values[i])  # type: ignore[arg-type]
        masked, said = counted is not None and not counted[i], [f"token {i + 1}"]
        if scale is not None and not (masked and np.isnan(value)):
            said.append(f"{scale.measure.name} {number(value if np.isfinite(value) else None)}")
        said += ["not in the loss"] * masked
        spans.append(
            html.Span(
                # A line break would hide a token that is nothing else.
                components.text_of(text.replace("\n", "⏎\n")),
                className="rs-token rs-masked" if masked else "rs-token",
                title=": ".join([said[0], ", ".join(said[1:])]) if said[1:] else said[0],
                style={"backgroundColor": scale.colour(value)} if scale is not None and np.isfinite(value) else {},
            )
        )
    return components.rule([*spans, *(["…"] if shown < len(texts) else [])])


def legend(scale: Scale) -> Any:
    """The scale's ends with what they mean."""
    (low_colour, low), (high_colour, high) = scale.ends()
    middle = "transparent, " if scale.measure.signed else ""
    ramp = html.Span(style={"background": f"linear-gradient(90deg, {low_colour}, {middle}{high_colour})"})
    return html.Div([low, ramp, f"{high} {scale.measure.unit}".strip()], className="rs-scale")


def _fitting(texts: Sequence[str]) -> int:
    """How many tokens are shown of a long completion."""
    reached = np.cumsum([len(text) for text in texts]) > FOLDED
    return min(FOLDED_TOKENS, int(np.argmax(reached)) if reached.any() else len(texts))


def _start(text: str, whole: bool) -> str:
    return text if whole or len(text) <= FOLDED else f"{text[:FOLDED]}…"


def _message(who: str, what: str, whole: bool) -> Any:
    role = who.partition(" ")[0]
    body = html.Div(components.rule(components.text_of(_start(what, whole))), className="rs-said")
    if role in ("user", "assistant", ""):
        top = html.Div(components.text_of(who), className="rs-role")
        return html.Div([top, body], className=f"rs-message rs-role-{role}" if role else "rs-message")
    beginning = components.text_of(" ".join(what[:80].split()))
    return html.Details([html.Summary([components.text_of(who), " · ", beginning]), body], className="rs-message")
