"""One run over its rounds: did it learn, what was kept, how far did it move, can its scores be believed."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
import numpy as np
import pyarrow as pa
from dash import Dash, Input, Output, State

from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.figures.curves import Line, Strip, over_rounds
from rollsight.explorer.following import follow
from rollsight.explorer.tables import column, has, performance, row, task_of, trained_by
from rollsight.explorer.theme import DROPPED, HELPED, HURT, number, percent
from rollsight.explorer.trust import trust_of


def layout(context: Context, address: Address) -> Any:
    """The run's facts and everything it measured by round."""
    metadata, rounds = context.reading.metadata(address.run), context.reading.rounds(address.run)
    settings = [
        ("seed", metadata.get("seed")),
        ("optimiser", metadata.get("optimizer")),
        ("rate", metadata.get("learning_rate")),
    ]
    lead = " · ".join(
        [task_of(metadata), str(metadata.get("algo") or ""), trained_by(metadata)]
        + [
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in settings
            if value is not None
        ]
    )
    top = components.heading(address.run, components.text_of(lead))
    follower = components.follower("overview", context.reading.token(address.run))
    if not len(rounds):
        return [
            top,
            follower,
            components.empty(
                "No round is complete yet",
                "This page fills itself when the first round is over and all of it is written.",
                f"rollsight check {context.reading.run(address.run).path}",
            ),
        ]
    return [
        top,
        follower,
        components.problems(context.reading.problems(address.run)),
        components.trust_line(trust_of(row(rounds, -1), column(rounds, "trust_split_half_permuted"))),
        dmc.Paper(
            components.facts(*_facts(rounds)), id="overview-facts", withBorder=True, radius="md", p="sm", mb="sm"
        ),
        components.card(
            "Over rounds",
            components.graph("overview-curves", figure(rounds)),
            note="Click a round to open it.",
        ),
    ]


def figure(rounds: pa.Table) -> Any:
    """What the run measured, below each other with one axis of rounds; what it did not measure is left out."""
    x = column(rounds, "round")

    def lines(*wanted: tuple[str, str, str | None]) -> list[Line]:
        return [
            Line(label, x, column(rounds, name), colour=colour) for label, name, colour in wanted if has(rounds, name)
        ]

    measure, values = performance(rounds)
    spread = column(rounds, f"{measure}_std")
    learning = [Line(f"{measure} in training", x, values, values - spread, values + spread)]
    learning += lines(("evaluation", "evaluation_return", None))
    phases = [name for name in rounds.column_names if name.startswith("time_") and has(rounds, name)]
    strips = [
        Strip(measure, learning),
        Strip(
            "share",
            lines(("kept", "kept_frac", HELPED), ("harmful mass", "neg_mass", HURT), ("negative", "neg_frac", DROPPED)),
            (0, 1.02),
        ),
        Strip(
            "rank agreement",
            lines(("halves", "trust_split_half", None), ("halves, permuted", "trust_split_half_permuted", None)),
            (-1, 1),
        ),
        Strip("KL (nats)", lines(("KL of the update", "approx_kl", None), ("KL to the reference", "kl_mean", None))),
        Strip("entropy (nats)", lines(("entropy", "entropy_mean", None))),
        Strip(
            "explained var.",
            [
                Line(line.name, line.rounds, np.clip(line.values, -1, 1))
                for line in lines(("explained variance", "explained_variance", None))
            ],
        ),
        Strip("clipped", lines(("clip fraction", "clip_fraction", None))),
        Strip("tokens", lines(("length of completions", "length_mean", None))),
        Strip("seconds", lines(*((name.removeprefix("time_"), name, None) for name in phases))),
    ]
    drawn = over_rounds([strip for strip in strips if strip.lines])
    return drawn.update_layout(uirevision="rounds")  # a zoom is kept while new rounds come


def _facts(rounds: pa.Table) -> list[Any]:
    last, measure = row(rounds, -1), performance(rounds)[0]
    values = performance(rounds)[1]
    finite = values[np.isfinite(values)]
    parts = [
        components.fact("Rounds", number(len(rounds))),
        components.fact("Records", number(int(np.nansum(column(rounds, "records"))))),
        components.fact(f"Last {measure}", number(float(finite[-1]) if len(finite) else None)),
        components.fact(f"Best {measure}", number(float(finite.max()) if len(finite) else None)),
        components.fact(
            "Kept", percent(last.get("kept_frac")), "Share of the valid records that stayed in the last update."
        ),
        components.fact(
            "Harmful mass", percent(last.get("neg_mass")), "Share of the sum of absolute scores that is negative.", HURT
        ),
        components.fact("Target", components.text_of(last.get("target") or "–")),
        components.fact("Backend", components.text_of(last.get("backend") or "–")),
        components.fact(
            "Drop mode",
            components.text_of(last.get("semantic") or "–"),
            "repack: minibatches are filled again; mask: gradients are left out.",
        ),
    ]
    warnings = (
        sorted({str(text) for text in rounds["warnings"].to_pylist() if text})
        if "warnings" in rounds.column_names
        else []
    )
    if warnings:
        parts.append(components.fact("Warnings", number(len(warnings)), components.text_of("; ".join(warnings)), HURT))
    return parts


def register(app: Dash, context: Context) -> None:
    """New rounds show as they come; a click opens a round."""

    def made(address: Address) -> tuple[Any, ...]:
        rounds = context.reading.rounds(address.run)
        return figure(rounds), components.facts(*_facts(rounds))

    parts = [Output("overview-curves", "figure"), Output("overview-facts", "children")]
    follow(app, context, "overview", parts, made)

    app.clientside_callback(
        """(click, path) => {
            const round = click && click.points && click.points[0].customdata;
            return round ? window.dash_clientside.rollsight.go(path.replace(/\\/$/, "") + "/round/" + round)
                         : window.dash_clientside.no_update;
        }""",
        Output("overview-curves", "id"),
        Input("overview-curves", "clickData"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
