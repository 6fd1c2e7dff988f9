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
    values: Sequence[float | None],
    scale: Scale,
    whole: bool = False,
) -> Any:
    """Tokens with the colours of their values; position and value show on hover."""
    shown = len(texts) if whole else _fitting(texts)
    spans = []
    for i, (text, value) in enumerate(zip(texts[:shown], values[:shown], strict=True)):
        known = value is not None and np.isfinite(value)
        label = f"token {i + 1}: {scale.measure.name} {number(float(value) if value is not None and known else None)}"
        spans.append(
            html.Span(
                # A line break would hide a token that is nothing else.
                components.text_of(text.replace("\n", "⏎\n")),
                className="rs-token",
                title=label,
                style={"backgroundColor": scale.colour(float(value))} if value is not None and known else {},
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
