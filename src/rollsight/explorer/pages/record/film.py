"""A record's episode: its scores step by step, and pictures of it as a film strip that can be played."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
import numpy as np
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

from rollsight.errors import RollsightError
from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.drawing import Drawn, as_source, drawn
from rollsight.explorer.figures.episode import score_curve
from rollsight.explorer.rounds import Round, round_of
from rollsight.explorer.similar import Episode, episode_of
from rollsight.explorer.theme import HELPED, HURT, number

_OPEN = """(click) => {
    const record = click && click.points && click.points[0].customdata;
    if (record === null || record === undefined) return window.dash_clientside.no_update;
    const path = window.location.pathname.replace(/\\/\\d+\\/?$/, "/" + record);
    return window.dash_clientside.rollsight.go(path + window.location.search);
}"""
_BAR = 26  # pixels of a score's bar, up and down


def layout(round: Round, record: int) -> Any:
    """The episode of a record; nothing where the run does not number them."""
    episode = episode_of(round, record)
    if episode is None:  # parts that the drawing of the record fills
        return html.Div([html.Div(id="record-film"), dmc.Button(id="record-play")], hidden=True)
    some = episode.records
    cut = [
        *(["it began in an earlier round"] if episode.begun_before else []),
        *(["it goes on in the next round"] if episode.goes_on else []),
    ]
    note = f"{number(len(some))} steps of it are in this round" + (f"; {' and '.join(cut)}" if cut else "")
    play = dmc.Button("▶ Play", id="record-play", size="compact-xs", variant="light", disabled=True)
    return components.card(
        "Its episode",
        components.graph(
            "record-episode",
            score_curve(episode.steps, round.scores[some], some, round.status[some], episode.place),
        ),
        html.Div(
            id="record-film", className="rs-film", tabIndex=0, role="group", **{"aria-label": "The episode in pictures"}
        ),
        note=f"{note}. Click a step to go there.",
        right=play,
        mb="sm",
    )


def strip(context: Context, address: Address, round: Round, episode: Episode, pictures: Drawn) -> list[Any]:
    """The film: a picture and a bar for each step; the bar is up where the step helped."""
    largest = float(np.nanmax(np.abs(round.scores[episode.records]), initial=0.0)) or 1.0
    steps = dict(zip(episode.records.tolist(), episode.steps.tolist(), strict=True))
    cells = []
    for record, frame in pictures.frames.items():
        score = float(np.nan_to_num(round.scores[record]))
        height = max(1, int(_BAR * abs(score) / largest)) if score else 0
        bar = html.Div(
            style={"height": f"{height}px", "background": HURT if score < 0 else HELPED},
            className="rs-bar-down" if score < 0 else "rs-bar-up",
        )
        here = record == int(episode.records[episode.place])
        to = Address("record", address.run, round.number, record, address.query)
        step = int(steps[record])
        cells.append(
            dcc.Link(
                [
                    html.Img(src=as_source(frame), alt=f"step {step}", height=84),
                    html.Div(bar, className="rs-bar"),
                    html.Span(str(step)),
                ],
                href=context.href(to),
                title=f"step {step}, record {record}, score {number(score)}",
                className="rs-frame rs-now" if here else "rs-frame",
            )
        )
    return cells


def register(app: Dash, context: Context) -> None:
    """Pictures come after the page: from observations by themselves, by playing the episode again on request."""

    @app.callback(
        Output("record-picture", "children"),
        Output("record-film", "children"),
        Output("record-play", "disabled"),
        Output("record-draw", "display"),
        Input("record-draw", "n_clicks"),
        State("url", "pathname"),
        State("url", "search"),
    )
    def draw(clicks: int | None, path: str, search: str) -> Any:
        address = context.address(path, search)
        if address is None or address.round is None or address.record is None:
            raise PreventUpdate
        round = round_of(context.reading, address.run, address.round, address.query.get("target"))
        episode = episode_of(round, address.record)
        some = [address.record] if episode is None else episode.records.tolist()
        run = context.reading.run(address.run)
        try:
            pictures = drawn(run, round.number, address.record, some, replay=bool(clicks))
        except RollsightError as error:
            return not_drawn(str(error)), [], True, "none" if clicks else None
        image = html.Img(
            src=as_source(pictures.picture), alt="What the agent saw", id="record-image", className="rs-seen"
        )
        by = "by playing its episode again" if pictures.replayed else "from its observation"
        film = [] if episode is None else strip(context, address, round, episode, pictures)
        said = dmc.Text(f"Drawn {by}.", size="xs", c="dimmed", ta="center")
        return html.Div([image, said]), film, len(film) < 2, "none"

    app.clientside_callback(
        _OPEN, Output("record-episode", "id"), Input("record-episode", "clickData"), prevent_initial_call=True
    )
    app.clientside_callback(
        ClientsideFunction("rollsight", "play"),
        Output("record-play", "children"),
        Input("record-play", "n_clicks"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("rollsight", "showFrame"), Output("record-film", "id"), Input("record-film", "children")
    )


def not_drawn(reason: str) -> Any:
    """Why there is no picture."""
    sentence = reason[:1].upper() + reason[1:] + ("" if reason.endswith(".") else ".")
    return dmc.Text(components.text_of(sentence), size="sm", c="dimmed", mb=6)
