"""Figures of a diagnosis in numbers: influence against advantages, quintiles, and where the harm comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rollsight.analysis.diagnosis.round import DiagnosedRecord, Diagnosis
from rollsight.analysis.diagnosis.statistics import Mass
from rollsight.analysis.drawing import BLUE, GREY, PINK, RED, new_figure, save_figure
from rollsight.escaping import plain_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOTTOM, TOP, RANDOM, WRONG = RED, BLUE, GREY, PINK
COLOURS = {"random": RANDOM, "top": TOP, "bottom": BOTTOM}  # in the order of drawing
HARM = {"action": "action", "phase": "tenth of the episode", "env": "environment"}  # as the axes name it


def draw_statistics(diagnosis: Diagnosis, folder: Path) -> list[Path]:
    """Draw `scatter.png`, `quintiles.png` and `harm.png` into the folder; returns their paths."""
    figures = {"scatter": scatter(diagnosis), "quintiles": quintiles(diagnosis), "harm": harm(diagnosis)}
    return [save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]


def scatter(diagnosis: Diagnosis) -> Figure:
    """Influence against A_bar * A_hat. The correlation is that of the random sample only; rings mark wrong signs."""
    from matplotlib.ticker import SymmetricalLogLocator

    figure = new_figure(6.6, 4.8)
    axes = figure.add_subplot()
    for name, colour in COLOURS.items():
        records = diagnosis.group(name)
        x, y = points(records)
        style: dict[str, Any] = {"s": 22 if name == "random" else 16, "alpha": 0.75, "linewidths": 0}
        axes.scatter(x, y, color=colour, label=f"{name} ({len(records)})", **style)
    x, y = points([record for record in diagnosis.records if record.mismatch])
    if len(x):
        axes.scatter(x, y, s=60, facecolors="none", edgecolors=WRONG, linewidths=0.9, label=f"wrong sign ({len(x)})")
    for axis, column in zip((axes.xaxis, axes.yaxis), points(diagnosis.records), strict=True):
        size = np.abs(column[column != 0])
        width = float(np.median(size)) if len(size) else 1.0
        scale = axes.set_xscale if axis is axes.xaxis else axes.set_yscale
        scale("symlog", linthresh=width, linscale=0.6)
        locator = SymmetricalLogLocator(base=10, linthresh=width)
        locator.numticks = 7
        axis.set_major_locator(locator)
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    one = diagnosis.correlation
    axes.set(
        title=f"{plain_label(diagnosis.env)}, round {diagnosis.round}\n"
        f"Spearman {one.value:.2f} [{one.low:.2f}, {one.high:.2f}] on the random sample",
        xlabel="influence (score)",
        ylabel=r"$\bar{A} \cdot \hat{A}$   (below 0: the buffer has the wrong sign)",
    )
    axes.title.set_fontsize(10)
    axes.legend(frameon=False, fontsize=8)
    return figure


def points(records: list[DiagnosedRecord]) -> tuple[Any, Any]:
    """Influence and A_bar * A_hat, each (n,)."""
    return np.array([r.score for r in records]), np.array([r.a_bar * r.a_hat for r in records])


def quintiles(diagnosis: Diagnosis) -> Figure:
    """Share of wrong signs and mean |A_bar - A_hat|: influence quintiles of the random sample, then the extremes."""
    figure = new_figure(8.4, 3.6)
    bars = {
        "bottom": (diagnosis.groups["bottom"], BOTTOM),
        **{f"{q}": (part, RANDOM) for q, part in enumerate(diagnosis.quintiles, 1)},
        "top": (diagnosis.groups["top"], TOP),
    }
    shares, sizes = figure.subplots(1, 2)
    for place, (part, colour) in enumerate(bars.values()):
        known = np.isfinite(part.share)
        shares.bar(place, 100 * part.share if known else 0, color=colour)
        shares.annotate(
            f"{part.mismatched}/{part.counted}",
            (place, 100 * part.share if known else 0),
            (0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
        sizes.bar(place, part.difference if np.isfinite(part.difference) else 0, color=colour)
        if np.isfinite(part.error):
            sizes.plot([place - 0.4, place + 0.4], [part.error] * 2, color="black", linewidth=1)
    for axes in (shares, sizes):
        axes.set_xticks(range(len(bars)), list(bars))
        axes.set_xlabel("influence: lowest records, quintiles of a random sample, highest", fontsize=8)
    shares.set(title=r"sign of $\hat{A}$ wrong, where $|\bar{A}| > 2$ s.e.", ylabel="%", ylim=(0, 108))
    sizes.set(title=r"mean $|\bar{A} - \hat{A}|$ (line: mean s.e. of $\bar{A}$)")
    for axes in (shares, sizes):
        axes.title.set_fontsize(10)
    return figure


def harm_shown(diagnosis: Diagnosis) -> dict[str, list[Mass]]:
    """What the harm can be split by: nothing that the round has one of only."""
    return {name: parts for name, parts in diagnosis.harm.items() if parts and (name != "env" or len(parts) > 1)}


def harm(diagnosis: Diagnosis) -> Figure:
    """Where the sum of negative scores comes from, next to the share of the records there."""
    shown = harm_shown(diagnosis)
    figure = new_figure(3.6 * max(len(shown), 1), 3.4)
    total = sum(part.records for part in diagnosis.harm["env"] or [])
    for place, (name, parts) in enumerate(shown.items(), 1):
        axes: Axes = figure.add_subplot(1, len(shown), place)
        at = np.arange(len(parts))
        axes.bar(at, [100 * part.share for part in parts], color=BOTTOM, label="harmful mass")
        axes.plot(
            at,
            [100 * part.records / total for part in parts],
            linestyle="none",
            marker="_",
            markersize=14,
            color="black",
            label="records",
        )
        names = [part.key + 1 if name == "phase" else part.key for part in parts]
        every = -(-len(parts) // 12)
        axes.set_xticks(at[::every], [str(key) for key in names[::every]])
        axes.set(xlabel=HARM[name], ylabel="% of the round" if place == 1 else None)
    if shown:
        figure.axes[0].legend(frameon=False, fontsize=8)
    return figure
