"""Arms against each other: curves by seed, gains with intervals, interventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from rollsight.analysis.intervals import Interval
from rollsight.analysis.intervention.arms import Intervention
from rollsight.analysis.intervention.pages import by_arm, by_round
from rollsight.escaping import plain_html
from rollsight.explorer.figures.curves import Line, Strip, over_rounds
from rollsight.explorer.theme import SERIES, dressed
from rollsight.studies.curves import Curve

_SEEDS = 12  # seeds of an arm that are drawn one by one


def learning(
    curves: Mapping[str, Mapping[str, Curve]],
    means: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    baseline: str,
    measure: str,
) -> go.Figure:
    """Two strips over rounds: each arm's mean with its 95 % band, and its difference to the baseline by seed.

    Args:
        curves: arm -> seed -> its curve.
        means: arm -> rounds, mean and half-width, (R,) each.
        baseline: the arm that the others are compared with.
        measure: what the curves show.
    """
    colours = {arm: SERIES[i % len(SERIES)] for i, arm in enumerate(means)}
    first = [
        Line(_counted(arm, curves[arm]), rounds, mean, mean - half, mean + half, colours[arm])
        for arm, (rounds, mean, half) in means.items()
    ]
    second = []
    for arm, seeds in curves.items():
        common = [seed for seed in seeds if seed in curves[baseline]]
        if arm == baseline or not common:
            continue
        changes = [seeds[seed]["return"] - curves[baseline][seed]["return"] for seed in common]
        rounds = seeds[common[0]]["round"]
        if len(common) > 1:
            second.append(Line(f"{arm}, mean", rounds, np.mean(changes, axis=0), colour=colours[arm]))
        second += [
            Line(f"{arm}, seed {seed}", rounds, change, colour=colours[arm], dash="dot" if len(common) > 1 else None)
            for seed, change in list(zip(common, changes, strict=True))[:_SEEDS]
        ]
    strips = [Strip(measure, first)]
    if second:
        strips.append(Strip(f"difference to<br>{plain_html(baseline)[:30]}", second))
    figure = over_rounds(strips, 210)
    last = max(float(rounds[-1]) for rounds, *_ in means.values())
    figure.update_layout(uirevision=baseline)  # a zoom is kept while new rounds come
    return figure.update_xaxes(dtick=1 if last <= 20 else None)


def gains(differences: Mapping[str, Mapping[str, Interval]]) -> go.Figure:
    """Differences to the baseline with their 95 % intervals.

    differences: what is compared -> arm -> difference.
    """
    arms = list(dict.fromkeys(arm for of in differences.values() for arm in of))
    figure = go.Figure()
    for place, (name, of) in enumerate(differences.items()):
        shown = [(arms.index(arm), one) for arm, one in of.items()]
        figure.add_trace(
            go.Scatter(
                x=[one.value for _, one in shown],
                y=[at + (place - (len(differences) - 1) / 2) * 0.25 for at, _ in shown],
                error_x=_bars([one for _, one in shown]), mode="markers", name=name,
                marker={"size": 8, "color": SERIES[place], "symbol": "circle" if place == 0 else "diamond"},
                hovertemplate="%{x:+.4g}<extra>" + plain_html(name) + "</extra>",
            )
        )  # fmt: skip
    figure.add_vline(x=0, line={"width": 1, "dash": "dot", "color": "rgba(128,134,144,0.9)"})
    labels = [plain_html(arm)[:40] for arm in arms]
    figure.update_yaxes(tickvals=list(range(len(arms))), ticktext=labels, range=[len(arms) - 0.4, -0.6], showgrid=False)
    figure.update_xaxes(title_text="difference to the baseline, with 95 % interval")
    return dressed(figure, 110 + 56 * len(arms))


def intervention(result: Intervention) -> tuple[go.Figure, go.Figure]:
    """Box plots of the difference in return to the unfiltered replay: by round, and over rounds by arm."""
    figures = by_round(result), by_arm(result)
    for figure in figures:
        # The means are black on the page of the analysis, where the ground is white always.
        figure.update_traces(marker_color="#8a8f98", error_y_color="#8a8f98", selector={"type": "scatter"})
        figure.update_shapes(line_color="rgba(128,134,144,0.9)")
        dressed(figure, 360)
    return figures


def _counted(arm: str, seeds: Mapping[str, Curve]) -> str:
    return f"{arm} ({len(seeds)} seeds)" if len(seeds) > 1 else arm


def _bars(intervals: Sequence[Interval]) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [one.high - one.value for one in intervals],
        "arrayminus": [one.value - one.low for one in intervals],
        "thickness": 1.6,
        "width": 4,
    }
