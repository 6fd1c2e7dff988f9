"""Small labels of completions: numbers under their names, and what became of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from dash import html

from rollsight.explorer import components
from rollsight.explorer.completions import Completions
from rollsight.explorer.theme import number

# Of text, by the meanings of the theme: the style sheet knows whether the page is light or dark.
_HELPED, _HURT, DROPPED, _INVALID = (f"var(--rs-{name})" for name in ("helped", "hurt", "dropped", "invalid"))
KEPT = "var(--rs-soft)"

SAME = "the completions of this prompt do not differ, so the update cannot prefer one to another."


def of_completion(completions: Completions, row: int) -> list[Any]:
    """Score, reward and other numbers of a completion, then its status."""
    table = completions.table
    chips = [
        chip("score", *signed(float(completions.scores[row]))),
        chip("reward", number(float(completions.rewards[row]))),
    ]
    parts = [name for name in table.column_names if name.startswith("reward_")]
    if len(parts) > 1:
        for name in parts:
            label = str(components.text_of(name.removeprefix("reward_")))
            chips.append(chip(label, number(table[name][row].as_py())))
    for name, column in (("advantage", "advantage"), ("KL", "kl"), ("tokens", "length")):
        if column in table.column_names:
            chips.append(chip(name, number(table[column][row].as_py())))
    return chips + _statuses(completions, row)


def _statuses(completions: Completions, row: int) -> list[Any]:
    if not completions.valid[row]:
        found = [status("invalid", _INVALID, "There is nothing in it to train on.")]
    elif completions.kept[row]:
        found = [status("kept", KEPT, "It stayed in the update.")]
    else:
        found = [status("dropped", DROPPED, "It was left out of the update.")]
    if completions.hack[row]:
        hint = "Its reward is in the highest quarter of the round, but it hurts the target: a hack of the reward?"
        found.append(status("high reward but harmful", _HURT, hint))
    if completions.truncated[row]:
        found.append(_at_the_limit(completions))
    if completions.empty[row]:
        found.append(status("empty", _INVALID, "It says nothing."))
    return found


def _at_the_limit(completions: Completions) -> Any:
    if completions.ends_known:
        return status("truncated", _INVALID, "It was cut off at the greatest length.")
    return status("length limit", _INVALID, "It has as many tokens as are allowed, so it may be cut off.")


def same(completions: Completions, group: int) -> str:
    """In what the completions of a prompt do not differ; "" where they do, or where there is one only."""
    row = int(np.argmax(completions.groups == group))
    masks = (("text", completions.same_texts), ("rewards", completions.same_rewards))
    found = [name for name, mask in masks if mask[row]]
    return f"same {' and '.join(found)}" if found else ""


def chip(name: str, value: str, colour: str | None = None) -> Any:
    """A number under its name."""
    body = html.B(value, style={"color": colour} if colour else {})
    return html.Span([html.I(name), body] if name else body, className="rs-chip")


def status(name: str, colour: str, hint: str) -> Any:
    """What became of a completion; hint: shown on hover."""
    return html.Span(name, className="rs-status", title=hint, style={"color": colour})


def signed(value: float | None) -> tuple[str, str | None]:
    """A score, and the colour of its sign."""
    if value is None or not np.isfinite(value) or value == 0:
        return number(value), None
    return number(value), _HURT if value < 0 else _HELPED


def mean(values: np.ndarray) -> float | None:
    """Of those that are there."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
