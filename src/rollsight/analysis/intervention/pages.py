"""An intervention as an interactive page: box plots by round and arm, with what each point is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from rollsight.analysis.intervention.arms import BASELINE, Difference, Intervention, RoundResult
from rollsight.analysis.intervention.labels import COLOURS, changes, place
from rollsight.analysis.page import Panel, dress, write_page


def write(result: Intervention, path: Path) -> Path:
    """Write the page.

    Raises:
        RollsightError: the file cannot be written.
    """
    title = f"{result.env}: what would rounds have done without {result.rule}?"
    lead = (
        f"Counterfactual: {result.counterfactual} (same buffer and advantages), {result.semantic}. Target: "
        f"{result.target}. Normalisation: {result.normalisation}. {result.orders} minibatch orders x {result.episodes} "
        f"common episodes, seed {result.seed}, {result.returns} returns."
    )
    return write_page(path, title, lead, panels(result))


def panels(result: Intervention) -> list[Panel]:
    """The page's figures."""
    return [
        Panel(
            "rounds",
            "Difference in return to the unfiltered replay, by round",
            "Each point is an episode, the same for all arms, averaged over the minibatch orders. Diamonds: mean and "
            "95 % interval over episodes and orders.",
            by_round(result),
        ),
        Panel(
            "arms",
            "By arm, over rounds and orders",
            "Each point is the mean over episodes of one round in one minibatch order. Diamonds: mean over rounds and "
            "95 % interval.",
            by_arm(result),
        ),
    ]


def by_round(result: Intervention) -> go.Figure:
    """For each arm a trace of boxes, a point per round and episode, and a trace of means with intervals."""
    figure = go.Figure()
    arms = list(result.summary)
    for index, arm in enumerate(arms):
        x, y, text = [], [], []
        for number, (one, change) in enumerate(zip(result.rounds, changes(result, arm), strict=True)):
            x += [place(index, len(arms), number)] * change.shape[1]
            y += change.mean(0).tolist()
            text += _episodes(one, arm)
        figure.add_box(
            x=x, y=y, hovertext=text, hoverinfo="text", hoveron="points", name=arm, legendgroup=arm,
            boxpoints="all", jitter=0.5, pointpos=0, width=0.7 / len(arms), marker_size=5, marker_opacity=0.5,
            marker_color=COLOURS[arm], line_width=1.5,
        )  # fmt: skip
    for index, arm in enumerate(arms):
        known = [(number, one, one.arms[arm].difference) for number, one in enumerate(result.rounds)]
        shown = [(number, one, change) for number, one, change in known if change is not None]
        figure.add_scatter(
            x=[place(index, len(arms), number) for number, _, _ in shown],
            y=[change.mean for _, _, change in shown],
            error_y=_bars([change for _, _, change in shown]),
            hovertext=[_mean(one, arm) for _, one, _ in shown],
            hoverinfo="text",
            mode="markers",
            marker={"symbol": "diamond", "size": 7, "color": "black"},
            name="mean, 95 %",
            legendgroup="means",
            showlegend=index == 0,
        )
    figure.add_hline(0, line={"color": "black", "width": 1, "dash": "dot"})
    names = [str(one.round) for one in result.rounds]
    axis = {"title": "round", "tickvals": list(range(len(names))), "ticktext": names, "showgrid": False}
    return dress(figure, 480, xaxis=axis, yaxis={"title": "difference in return", "zeroline": False})


def by_arm(result: Intervention) -> go.Figure:
    """For each arm a box with a point per round and order, then a trace with the means over rounds."""
    figure = go.Figure()
    for arm in result.summary:
        means = [change.mean(1).tolist() for change in changes(result, arm)]
        text = [
            f"{arm}, round {one.round}, order {order}: {value:+.4g}"
            for one, orders in zip(result.rounds, means, strict=True)
            for order, value in enumerate(orders)
        ]
        figure.add_box(
            x=[arm] * len(text), y=[value for orders in means for value in orders], hovertext=text, hoverinfo="text",
            hoveron="points", name=arm, boxpoints="all", jitter=0.4, pointpos=0, width=0.5, marker_size=5,
            marker_opacity=0.6, marker_color=COLOURS[arm], line_width=1.5, showlegend=False,
        )  # fmt: skip
    summary = result.summary
    figure.add_scatter(
        x=list(summary),
        y=[change.mean for change in summary.values()],
        error_y=_bars(list(summary.values())),
        hovertext=[f"{arm}: {c.mean:+.4g} [{c.low:+.4g}, {c.high:+.4g}]" for arm, c in summary.items()],
        hoverinfo="text",
        mode="markers",
        marker={"symbol": "diamond", "size": 8, "color": "black"},
        showlegend=False,
    )
    figure.add_hline(0, line={"color": "black", "width": 1, "dash": "dot"})
    return dress(figure, 400, yaxis={"title": "difference in return", "zeroline": False})


def _bars(differences: Sequence[Difference]) -> dict[str, Any]:
    """Plotly's description of asymmetric error bars."""
    above, below = [d.high - d.mean for d in differences], [d.mean - d.low for d in differences]
    return {"symmetric": False, "array": above, "arrayminus": below, "color": "black", "thickness": 1.2, "width": 3}


def _episodes(one: RoundResult, arm: str) -> list[str]:
    """(episodes,) what each episode's point says."""
    with_arm, without = (one.arms[name].returns.mean(0).tolist() for name in (arm, BASELINE))
    return [
        f"{arm}, round {one.round}, episode {episode}<br>return {mine:.4g}, unfiltered {base:.4g}: {mine - base:+.4g}"
        for episode, (mine, base) in enumerate(zip(with_arm, without, strict=True))
    ]


def _mean(one: RoundResult, arm: str) -> str:
    of = one.arms[arm]
    assert of.difference is not None
    mean, low, high = of.difference.mean, of.difference.low, of.difference.high
    dropped, steps = sum(of.dropped) / len(of.dropped), sum(of.steps) / len(of.steps)
    return (
        f"<b>{arm}, round {one.round}</b><br>{mean:+.4g} [{low:+.4g}, {high:+.4g}]<br>{dropped:.0f} of {one.records} "
        f"records left out, {steps:.0f} optimiser steps<br>mean return {of.returns.mean():.4g}"
    )
