"""The open prompt: what it asks, and its completions."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
import numpy as np
from dash import html

from rollsight.conversations import messages_of
from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.figures.tokens import Scale, by_position, measure_of, scale_of
from rollsight.explorer.pages.prompts import chips, texts
from rollsight.explorer.pages.prompts.choice import Choice
from rollsight.explorer.theme import number

SHOWN = 16  # completions of a prompt, unless all are asked for


def detail(context: Context, choice: Choice) -> list[Any]:
    """The prompt with its facts, then its completions: first those that pass the filter."""
    if choice.group is None:
        what = "Choose another filter, search for less, or look at another round."
        return [components.empty("No completion is like that", what)]
    completions, prompt = choice.completions, choice.completions.prompt(choice.group)
    rows = completions.of_group(choice.group, choice.order)
    passing = choice.matching[rows]
    rows = np.concatenate([rows[passing], rows[~passing]])
    shown = rows if choice.address.query.get("completions") == "all" else rows[:SHOWN]
    scale = scale_for(choice)
    facts = dmc.Box(components.facts(*_facts(choice, rows)), mt=8)
    parts = [components.card("Prompt", dmc.Box(texts.said(prompt), className="rs-prompt-whole"), facts)]
    if same := chips.same(completions, choice.group):
        parts.append(dmc.Alert(f"{same.capitalize()}: {chips.SAME}", color="gray", mt=8))
    parts.append(_shading(choice, scale))
    matching = int(passing.sum())
    cards = [_completion(context, choice, row, scale) for row in shown.tolist()]
    if 0 < matching < len(cards):
        cards.insert(matching, dmc.Text("Other completions of this prompt", size="xs", c="dimmed", my=8))
    parts += cards
    if len(shown) < len(rows):
        everything = f"Show all {number(len(rows))} completions"
        parts.append(dmc.Center(components.link(everything, choice.at(completions="all"), context.prefix), p="sm"))
    return parts


def scale_for(choice: Choice) -> Scale | None:
    """The colours of the tokens, over the whole round; None where they are not shaded."""
    if choice.shade is None:
        return None
    values = choice.completions.table[choice.shade].combine_chunks().flatten()
    return scale_of(measure_of(choice.shade), np.asarray(values.cast("float64").fill_null(float("nan"))))


def completion_text(choice: Choice, row: int, scale: Scale | None, *, whole: bool = False) -> list[Any]:
    """What a completion says, token by token where their texts are stored. whole: all of a long text."""
    table = choice.completions.table
    text = str(table["completion"][row].as_py() or "")
    tokens = table["token_texts"][row].as_py() if "token_texts" in table.column_names else None
    values = table[scale.measure.column][row].as_py() if scale is not None else None
    counted = table["token_in_loss"][row].as_py() if "token_in_loss" in table.column_names else None
    spans = None
    if scale is not None and values and tokens and len(values) == len(tokens):
        spans = texts.token_spans(tokens, values, scale, whole=whole, counted=counted)
    elif tokens and counted and not all(counted):
        spans = texts.token_spans(tokens, None, None, whole=whole, counted=counted)
    parts: list[Any] = []
    if spans is not None and messages_of(text) is None:
        parts.append(spans)
    elif spans is not None:
        parts += [
            texts.said(text, whole),
            html.Details([html.Summary("Token by token"), spans], className="rs-message"),
        ]
    elif text.strip():
        parts.append(texts.said(text, whole))
    else:
        parts.append(dmc.Text("(no text)", c="dimmed", size="sm"))
    if scale is not None and values and not tokens:
        parts.append(components.graph(f"prompts-strip-{row}", by_position(values, scale)))
    if not whole and texts.is_long(text, tokens):
        label = f"Show all {number(len(text))} characters"
        identity = {"type": "prompts-whole", "row": row}
        parts.append(dmc.Button(label, id=identity, size="compact-xs", variant="default", mt=4))
    return parts


def _completion(context: Context, choice: Choice, row: int, scale: Scale | None) -> Any:
    to = Address("record", choice.address.run, choice.round, row)
    record = html.Span(components.link(f"record {row}", to, context.prefix), className="rs-to-record")
    top = html.Div([*chips.of_completion(choice.completions, row), record], className="rs-chips")
    body = html.Div(completion_text(choice, row, scale), id={"type": "prompts-text", "row": row}, className="rs-said")
    passes = bool(choice.matching[row])
    return html.Article([top, body], className="rs-completion" if passes else "rs-completion rs-other")


def _facts(choice: Choice, rows: np.ndarray) -> list[Any]:
    completions = choice.completions
    rewards, scores = completions.rewards[rows], completions.scores[rows]
    facts = [
        components.fact("Completions", number(len(rows))),
        components.fact("Mean reward", number(chips.mean(rewards))),
        components.fact("Mean score", chips.chip("", *chips.signed(chips.mean(scores)))),
        components.fact("Harmful", f"{int(completions.harmful[rows].sum())} of {len(rows)}"),
    ]
    known = rewards[np.isfinite(rewards)]
    if len(known) > 1:
        facts.insert(2, components.fact("Spread of rewards", number(float(known.std())), "Standard deviation."))
    return facts


def _shading(choice: Choice, scale: Scale | None) -> Any:
    """What the shades mean, or what the run lacks to have some."""
    if not choice.shades:
        sentence = "This run stores no numbers of single tokens, so its completions have no shades."
        return dmc.Text(sentence, size="xs", c="dimmed", my=8)
    if scale is None:
        return dmc.Box(my=8)
    name = scale.measure.name
    if "token_texts" not in choice.completions.table.column_names:
        sentence = (
            f"The texts of single tokens are not stored in this run, so the {name} of each token is drawn below the "
            "completion. Runs of newer versions have them in the column token_texts."
        )
        return dmc.Text(sentence, size="xs", c="dimmed", my=8)
    return dmc.Group([dmc.Text(f"Tokens by {name}", size="xs", c="dimmed"), texts.legend(scale)], gap="md", my=8)
