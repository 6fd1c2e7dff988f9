"""A diagnosis as an interactive page: influence against advantages record by record, fifths, and where harm is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rollsight.analysis.diagnosis.figures import BOTTOM, COLOURS, HARM, RANDOM, TOP, WRONG, harm_shown, points
from rollsight.analysis.diagnosis.round import DiagnosedRecord, Diagnosis
from rollsight.analysis.diagnosis.statistics import Agreement, Mass
from rollsight.analysis.page import Panel, dress, short, write_page

_TICKS = 3  # powers of ten on each side of 0
_CLEAR = 0.15  # of half the axis: how far from 0 the first of them is at least


def write(diagnosis: Diagnosis, path: Path) -> Path:
    """Write the page.

    Raises:
        RollsightError: the file cannot be written.
    """
    one = diagnosis.correlation
    lead = (
        f"Spearman of influence with A_bar * A_hat on the random sample: {one.value:.2f} [{one.low:.2f}, "
        f"{one.high:.2f}], resampled by {diagnosis.unit}. {diagnosis.done} records, {diagnosis.branches} branches "
        f"each; {diagnosis.how}.{''.join(f' Note: {note}.' for note in diagnosis.notes)}"
    )
    title = f"{diagnosis.env}, round {diagnosis.round}: why do the bottom records hurt?"
    return write_page(path, title, lead, panels(diagnosis))


def panels(diagnosis: Diagnosis) -> list[Panel]:
    """The page's figures."""
    return [
        Panel(
            "scatter",
            "Influence and advantages",
            "A_hat is the advantage in the buffer, A_bar the Monte-Carlo one of the same policy; below 0 they have "
            "different signs. Rings: the sign is wrong beyond two standard errors. Point at a record to see what it "
            "is.",
            scatter(diagnosis),
        ),
        Panel(
            "fifths",
            "By influence",
            "The lowest records, the fifths of the random sample, and the highest. Left: share of wrong signs among "
            "those that count. Right: mean |A_bar - A_hat|; dashes: mean standard error of A_bar.",
            fifths(diagnosis),
        ),
        Panel(
            "harm",
            "Where the harm comes from",
            "Shares of the sum of all negative scores of the round; dashes: shares of its records.",
            harm(diagnosis),
        ),
    ]


def scatter(diagnosis: Diagnosis) -> go.Figure:
    """A trace per group, random, top, bottom, then the rings of wrong signs; both axes on an asinh scale."""
    x_unit, y_unit = (_unit(column) for column in points(diagnosis.records))

    def place(records: list[DiagnosedRecord]) -> dict[str, Any]:
        x, y = points(records)
        return {"x": np.arcsinh(x / x_unit).tolist(), "y": np.arcsinh(y / y_unit).tolist()}

    figure = go.Figure()
    for name, colour in COLOURS.items():
        records = diagnosis.group(name)
        figure.add_scatter(
            **place(records),
            mode="markers",
            marker={"color": colour, "size": 8, "opacity": 0.75},
            hovertext=[_tell(record) for record in records],
            hoverinfo="text",
            name=f"{name} ({len(records)})",
        )
    wrong = [record for record in diagnosis.records if record.mismatch]
    ring = {"symbol": "circle-open", "color": WRONG, "size": 13, "line": {"width": 1.5}}
    figure.add_scatter(**place(wrong), mode="markers", marker=ring, hoverinfo="skip", name=f"wrong sign ({len(wrong)})")
    x, y = points(diagnosis.records)
    xaxis = {"title": "influence (score)", **_ticks(x, x_unit)}
    return dress(figure, 560, xaxis=xaxis, yaxis={"title": "A_bar * A_hat", **_ticks(y, y_unit)})


def fifths(diagnosis: Diagnosis) -> go.Figure:
    """Bars of the share of wrong signs, bars of the mean distance, and marks of its standard error."""
    parts = {
        "lowest": (diagnosis.groups["bottom"], BOTTOM),
        **{f"fifth {number}": (part, RANDOM) for number, part in enumerate(diagnosis.quintiles, 1)},
        "highest": (diagnosis.groups["top"], TOP),
    }
    names, colours = list(parts), [colour for _, colour in parts.values()]
    text = [_agreement(name, part) for name, (part, _) in parts.items()]
    titles = ["wrong signs of A_hat", "mean |A_bar - A_hat|"]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.09)
    bars = {"x": names, "marker_color": colours, "hovertext": text, "hoverinfo": "text", "textposition": "outside"}
    counts = [f"{part.mismatched}/{part.counted}" for part, _ in parts.values()]
    share = [part.share if math.isfinite(part.share) else 0.0 for part, _ in parts.values()]
    figure.add_bar(**bars, y=share, texttemplate="%{customdata}", customdata=counts, row=1, col=1)
    figure.add_bar(**bars, y=[part.difference for part, _ in parts.values()], row=1, col=2)
    errors = [part.error for part, _ in parts.values()]
    figure.add_scatter(x=names, y=errors, mode="markers", marker=_DASH, hoverinfo="skip", row=1, col=2)
    figure.update_yaxes(range=[0, 1.1], tickformat=".0%", row=1, col=1)
    figure.update_yaxes(rangemode="tozero", row=1, col=2)
    return dress(figure, 380, showlegend=False)


def harm(diagnosis: Diagnosis) -> go.Figure:
    """A panel for each of action, phase and environment: bars of harm, marks of the share of records."""
    shown = harm_shown(diagnosis)
    total = sum(part.records for part in diagnosis.harm["env"] or [])
    figure = make_subplots(1, max(len(shown), 1), horizontal_spacing=0.07)
    for column, (name, parts) in enumerate(shown.items(), 1):
        keys = [str(part.key + 1 if name == "phase" else part.key) for part in parts]
        text = [_mass(HARM[name], key, part, total) for key, part in zip(keys, parts, strict=True)]
        said = {"x": keys, "hovertext": text, "hoverinfo": "text", "row": 1, "col": column}
        figure.add_bar(**said, y=[part.share for part in parts], marker_color=BOTTOM)
        figure.add_scatter(**said, y=[part.records / total for part in parts], mode="markers", marker=_DASH)
        figure.update_xaxes(title_text=HARM[name], type="category", row=1, col=column)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return dress(figure, 360, showlegend=False)


_DASH = {"symbol": "line-ew", "size": 16, "line": {"width": 2, "color": "black"}}


def _unit(values: Any) -> float:
    """Where the asinh scale turns from linear to logarithmic: the median size."""
    size = np.abs(values[values != 0])
    return float(np.median(size)) if len(size) else 1.0


def _ticks(values: Any, unit: float) -> dict[str, Any]:
    """Ticks at 0 and at powers of ten of both signs, the largest that the values reach; none crowded around 0."""
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    top = math.floor(math.log10(largest))
    powers = [10.0**power for power in range(top - _TICKS + 1, top + 1)]
    powers = [power for power in powers if math.asinh(power / unit) > _CLEAR * math.asinh(largest / unit)]
    at = [-power for power in reversed(powers)] + [0.0, *powers]
    return {"tickvals": [math.asinh(tick / unit) for tick in at], "ticktext": [f"{tick:g}" for tick in at]}


def _tell(r: DiagnosedRecord) -> str:
    """What a record's point says."""
    sign = "within two standard errors of 0" if r.mismatch is None else "wrong sign" if r.mismatch else "right sign"
    return (
        f"<b>env {r.env}, step {r.step}</b> (episode {r.episode}, its step {r.episode_step})<br>obs {short(r.obs)}<br>"
        f"action {short(r.action)}<br>influence {r.score:.4g}, fifth {r.quintile + 1}<br>A_hat {r.a_hat:.4g}, A_bar "
        f"{r.a_bar:.4g} ± {r.a_bar_error:.2g}: {sign}"
    )


def _agreement(name: str, part: Agreement) -> str:
    return (
        f"<b>{name}</b>: {part.records} records<br>{part.mismatched} wrong of the {part.counted} signs that count<br>"
        f"mean |A_bar - A_hat| {part.difference:.4g}, mean s.e. {part.error:.2g}"
    )


def _mass(what: str, key: str, part: Mass, total: int) -> str:
    return (
        f"<b>{what} {key}</b><br>{part.share:.1%} of the harm (sum of negative scores {part.mass:.4g})<br>"
        f"{part.records / total:.1%} of the records ({part.records})"
    )
