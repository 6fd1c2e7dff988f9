"""The list of prompts: what each asks, how its completions did."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
import numpy as np
from dash import dcc, html

from rollsight.conversations import on_one_line
from rollsight.explorer import components
from rollsight.explorer.context import Context
from rollsight.explorer.pages.prompts import chips
from rollsight.explorer.pages.prompts.choice import Choice
from rollsight.explorer.theme import number

PAGE = 25  # prompts in the list
_EXCERPT = 160  # characters of a prompt in the list


def listing(context: Context, choice: Choice) -> Any:
    """A page of the prompts that are shown: the one with the open prompt."""
    completions, groups = choice.completions, choice.groups
    found = f"{number(int(choice.matching.sum()))} of {number(len(completions))} completions"
    many = "1 prompt" if len(groups) == 1 else f"{number(len(groups))} prompts"
    top = dmc.Text(f"{found}, {many}", size="xs", c="dimmed", px=10, py=6)
    if choice.group is None:
        return dmc.Paper(top, withBorder=True, radius="md")
    page, pages = groups.index(choice.group) // PAGE, -(-len(groups) // PAGE)
    rows = [_row(context, choice, group) for group in groups[page * PAGE : (page + 1) * PAGE]]
    turned = [
        components.link(label, choice.at(group=groups[(page + by) * PAGE]), context.prefix)
        for label, by in ((f"← page {page}", -1), (f"page {page + 2} of {pages} →", 1))
        if 0 <= page + by < pages
    ]
    foot = [dmc.Group(turned, justify="space-between", px=10, py=6, fz="xs")] if turned else []
    return dmc.Paper([top, *rows, *foot], withBorder=True, radius="md", className="rs-prompt-list")


def _row(context: Context, choice: Choice, group: int) -> Any:
    completions = choice.completions
    rows = completions.of_group(group)
    text = on_one_line(completions.prompt(group))
    # Prompts begin alike and end in the question.
    excerpt = text if len(text) <= _EXCERPT else f"{text[: _EXCERPT // 3]} … {text[-_EXCERPT * 2 // 3 :]}"
    labels = [
        *([chips.chip("", f"{number(len(rows))} ×")] if len(rows) > 1 else []),
        chips.chip("reward", number(chips.mean(completions.rewards[rows]))),
        *_scores(completions.scores[rows]),
    ]
    if same := chips.same(completions, group):
        labels.append(chips.status(same, chips.KEPT, f"{same.capitalize()}: {chips.SAME}"))
    active = group == choice.group
    return dcc.Link(
        [
            html.Div(components.text_of(excerpt) or "(no text)", className="rs-prompt-text"),
            html.Div(labels, className="rs-prompt-chips"),
        ],
        href=context.href(choice.at(group=group)),
        className="rs-prompt-row rs-chosen" if active else "rs-prompt-row",
    )


def _scores(scores: np.ndarray) -> list[Any]:
    """The score, or of several the lowest and the highest."""
    known = scores[np.isfinite(scores)]
    if len(known) < 2:
        return [chips.chip("score", *chips.signed(float(known[0]) if len(known) else None))]
    ends = (("lowest", float(known.min())), ("highest", float(known.max())))
    return [chips.chip(name, *chips.signed(value)) for name, value in ends]
