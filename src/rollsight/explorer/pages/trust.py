"""Can this run's scores be believed? The trust line over rounds, what the scores are, and what retraining said."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import dash_mantine_components as dmc
import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
from dash import Dash, Output

from rollsight import runs
from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.figures.curves import Line, Strip, over_rounds
from rollsight.explorer.following import follow
from rollsight.explorer.tables import column, has, row
from rollsight.explorer.theme import HELPED, HURT, INVALID, dressed
from rollsight.explorer.trust import trust_of
from rollsight.runs import is_language

_VERDICTS = {
    "believable": (
        "teal",
        "Believable",
        "Rankings of records do not depend on which half of the round they are measured on.",
    ),
    "weak": ("yellow", "Sums only", "Look at sums over episodes, environments and prompts."),
    "noise": ("red", "Mostly noise", "Halves of the round agree no better than chance."),
    "unknown": ("gray", "Not known", "No trust line was computed, or the round was not scored."),
}


def layout(context: Context, address: Address) -> Any:
    """The verdicts of the rounds, the lines behind them, and the results of retraining."""
    rounds = context.reading.rounds(address.run)
    top = components.heading("Trust", f"Can the scores of {address.run} be believed?")
    follower = components.follower("trust", context.reading.token(address.run))
    if not len(rounds):
        return [
            top,
            follower,
            components.empty("No round is complete yet", "Each round measures how far its scores can be believed."),
        ]
    path = context.reading.run(address.run).path
    return [
        top,
        follower,
        components.problems(context.reading.problems(address.run)),
        components.trust_line(trust_of(row(rounds, -1), column(rounds, "trust_split_half_permuted"))),
        dmc.SimpleGrid(_verdicts(rounds), cols={"base": 2, "md": 4}, spacing="sm", mb="sm", id="trust-verdicts"),
        components.card(
            "Trust line over rounds",
            components.graph("trust-curves", figure(rounds), className="rs-tall"),
            note="Rank correlation of the scores when each half gives the target of the other; permuted: by chance.",
        ),
        dmc.SimpleGrid(
            [_meaning(context.reading.metadata(address.run), rounds), _retraining(path, rounds, context, address)],
            cols={"base": 1, "lg": 2},
            spacing="sm",
            mt="sm",
        ),
    ]


def figure(rounds: pa.Table) -> go.Figure:
    """Agreement of halves and of chance, what the selection did to the gradient, how far the update went."""
    x = column(rounds, "round")

    def lines(*wanted: tuple[str, str, str]) -> list[Line]:
        return [
            Line(label, x, column(rounds, name), colour=colour) for label, name, colour in wanted if has(rounds, name)
        ]

    strips = [
        Strip(
            "rank agreement",
            lines(
                ("halves", "trust_split_half", HELPED),
                ("halves, permuted", "trust_split_half_permuted", INVALID),
            ),
            (-1.05, 1.05),
        ),
        Strip(
            "gradient ratio", lines(("mean gradient, after the selection over before", "trust_gradient_ratio", HURT))
        ),
        Strip("share", lines(("largest hundredth of the scores", "top1pct_share", HURT)), (0, 1.02)),
        Strip("update norm", lines(("length of the update", "update_norm", "#6c5ce7"))),
        Strip("KL (nats)", lines(("KL of the update", "approx_kl", "#0f9d8a"))),
    ]
    drawn = [strip for strip in strips if strip.lines]
    figure = over_rounds(drawn or [Strip("rank agreement", [])])
    return figure.update_layout(uirevision="rounds")  # a zoom is kept while new rounds come


def _verdicts(rounds: pa.Table) -> list[Any]:
    permuted = column(rounds, "trust_split_half_permuted")
    said: list[str] = [trust_of(summary, permuted).verdict for summary in rounds.to_pylist()]
    cards = []
    for verdict, (colour, label, meaning) in _VERDICTS.items():
        badge = dmc.Badge(label, color=colour, variant="light", radius="sm")
        count = dmc.Text(f"{said.count(verdict)} of {len(said)} rounds", fw=600, size="sm")
        cards.append(
            dmc.Paper(
                dmc.Stack([dmc.Group([badge, count], gap="xs"), dmc.Text(meaning, size="xs", c="dimmed")], gap=4),
                withBorder=True, radius="md", p="sm",
            )
        )  # fmt: skip
    return cards


def _meaning(metadata: Mapping[str, Any], rounds: pa.Table) -> Any:
    """What a score of this run is: every result names these."""
    last = row(rounds, -1)
    rows = [
        ("Target", last.get("target"), "what the scores explain"),
        (
            "Backend",
            last.get("backend"),
            "how they were computed; a weight that it does not cover is an error, not a gap",
        ),
        ("Normalisation of advantages", last.get("normalisation"), "as the scores see them"),
        ("Drop mode", last.get("semantic"), "how a dropped record leaves the update"),
        ("Counterfactual", "replay", "the update again without the records; advantages and policy's behaviour stay"),
        ("Rule", metadata.get("rule") or "none", "from scores to what stays"),
        ("Measured on", "the records that are scored", "so a record's own part is in its score: the in-sample trap"),
    ]
    if last.get("held_out") is not None:  # a replay buffer, whose rounds are not replayed
        rows[4] = ("Counterfactual", "none", "one plain gradient step of the critic, to first order")
        rows[6] = ("Measured on", "held-out episodes", "which are played for it, and hold none of the transitions")
    body = [
        dmc.TableTr(
            [
                dmc.TableTd(name),
                dmc.TableTd(dmc.Text(components.text_of(value if value is not None else "–"), size="sm", fw=600)),
                dmc.TableTd(dmc.Text(hint, size="xs", c="dimmed")),
            ]
        )
        for name, value, hint in rows
    ]
    return components.card("What a score is here", dmc.Table(dmc.TableTbody(body), verticalSpacing=4, fz="sm"))


def _retraining(path: Any, rounds: pa.Table, context: Context, address: Address) -> Any:
    """What retraining said, where it was asked; the command that asks, otherwise."""
    results = runs.stored_results(path, "fidelity")
    stored = context.reading.run(address.run).snapshot_rounds
    parts: list[Any] = []
    if results:
        parts.append(components.graph("trust-fidelity", fidelity_figure(results)))
    if is_language(context.reading.metadata(address.run)):
        parts.append(
            components.empty("Not for language runs", "The rounds of language models are not retrained from here.")
        )
    elif not stored:
        parts.append(
            components.empty(
                "This run has no snapshots",
                "Retraining a round needs the round frozen: train with snapshots, as with --snapshots every:10.",
            )
        )
    else:
        known = {result.get("round") for result in results.values()}
        left = [number for number in stored if number not in known] or stored
        folder = runs.results_folder(path, "fidelity", f"round-{left[-1]}")
        command = shlex.join(["rollsight", "fidelity", str(path), "--round", str(left[-1]), "--out", str(folder)])
        text = "Retrain a round on random halves of its records and see whether the scores rank the outcomes:"
        parts += [dmc.Text(text, size="sm", c="dimmed", mt="xs"), components.copied(command)]
    return components.card("Do the scores predict retraining?", *parts)


def fidelity_figure(results: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Rank correlation of predicted and measured change with its interval by round, ceiling and null band around it."""
    rows = sorted(
        (result for result in results.values() if "lds" in result), key=lambda result: int(result.get("round", 0))
    )
    x = [f"round {result.get('round')}" for result in rows]
    values = np.array([float(result["lds"]) for result in rows])

    def ends(name: str) -> np.ndarray:
        return np.array([float(result[name]) if result.get(name) is not None else np.nan for result in rows])

    figure = go.Figure()
    band: Sequence[tuple[str, str]] = (("null_high", "chance, upper"), ("null_low", "chance, lower"))
    for name, label in band:
        figure.add_trace(
            go.Scatter(
                x=x,
                y=ends(name),
                mode="markers",
                marker={"symbol": "line-ew-open", "size": 26, "color": INVALID},
                name=label,
            )
        )
    figure.add_trace(
        go.Scatter(
            x=x,
            y=ends("ceiling"),
            mode="markers",
            marker={"symbol": "line-ew-open", "size": 26, "color": HELPED},
            name="best possible",
        )
    )
    error = {
        "type": "data",
        "array": ends("lds_high") - values,
        "arrayminus": values - ends("lds_low"),
        "thickness": 1.5,
    }
    figure.add_trace(
        go.Scatter(x=x, y=values, error_y=error, mode="markers", marker={"size": 9, "color": HURT}, name="these scores")
    )
    figure.update_yaxes(title_text="rank correlation with outcomes", range=[-1.05, 1.05])
    return dressed(figure, 260)


def register(app: Dash, context: Context) -> None:
    """New rounds show as they come."""

    def made(address: Address) -> tuple[Any, ...]:
        rounds = context.reading.rounds(address.run)
        return figure(rounds), _verdicts(rounds)

    follow(app, context, "trust", [Output("trust-curves", "figure"), Output("trust-verdicts", "children")], made)
