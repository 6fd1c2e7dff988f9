"""A record's episode: its scores step by step, and pictures of it as a film strip that can be played."""

from __future__ import annotations

from typing import Any

from dash import html

from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.figures.episode import score_curve
from rollsight.explorer.rounds import Round
from rollsight.explorer.similar import episode_of
from rollsight.explorer.theme import number

_OPEN = """(click) => {
    const record = click && click.points && click.points[0].customdata;
    if (record === null || record === undefined) return window.dash_clientside.no_update;
    const path = window.location.pathname.replace(/\\/\\d+\\/?$/, "/" + record);
    return window.dash_clientside.rollsight.go(path + window.location.search);
}"""


def layout(context: Context, address: Address, round: Round, record: int) -> Any:
    """The episode of a record; nothing where the run does not number them."""
    episode = episode_of(round, record)
    if episode is None:
        return html.Div(components.graph("record-episode", score_curve_of_nothing()), hidden=True)
    some = episode.records
    cut = [
        *(["it began in an earlier round"] if episode.begun_before else []),
        *(["it goes on in the next round"] if episode.goes_on else []),
    ]
    note = f"{number(len(some))} steps of it are in this round" + (f"; {' and '.join(cut)}" if cut else "")
    return components.card(
        "Its episode",
        components.graph(
            "record-episode",
            score_curve(episode.steps, round.scores[some], some, round.status[some], episode.place),
        ),
        note=f"{note}. Click a step to go there.",
        mb="sm",
    )
