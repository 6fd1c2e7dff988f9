"""The study as pictures, and as one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import qualitative

from rollsight.analysis.drawing import GREY, RED, new_figure, save_figure
from rollsight.analysis.learning_curves import band
from rollsight.analysis.page import Panel, dress, write_page
from rollsight.studies.curves import Floats
from rollsight.studies.paper.arms import KINDS, Arm
from rollsight.studies.paper.results import ArmResult, EnvResult
from rollsight.studies.settings import settings_for

_SHOWN = {"se_ave": "SE_ave", "se_peak": "SE_peak", "rt_paper": "RT_peak"}


def draw_curves(result: EnvResult, path: Path) -> Path:
    """Learning curves, mean and 95 % band over seeds; a panel for each set of options.

    Raises:
        RollsightError: the file cannot be written.
    """
    panels = _panels(result)
    figure = new_figure(6.4 * len(panels), 4.4)
    for index, (options, arms) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for one in arms:
            rounds, mean, half = _curve(one)
            (line,) = axes.plot(rounds, mean, label=_label(one), linewidth=1.6, color=_colour(one.arm))
            axes.fill_between(rounds, mean - half, mean + half, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(title=f"{result.env}{options}", xlabel="round", ylabel="mean evaluation return")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def draw_savings(results: Sequence[EnvResult], path: Path) -> Path:
    """What each arm saves against its PPO, of the mean curves with bootstrap intervals, beside the paper's figures and
    the null of PPO against itself, both at the paper's settings; a row for each environment.

    Raises:
        RollsightError: the file cannot be written.
    """
    drawn = [result for result in results if any(one.contrast for one in result.arms)]
    heights = [sum(one.contrast is not None for one in result.arms) for result in drawn]
    figure = new_figure(12.0, 1.6 + sum(0.26 * height + 0.7 for height in heights))
    grid = figure.add_gridspec(max(1, len(drawn)), len(_SHOWN), height_ratios=heights or None)
    for row, result in enumerate(drawn):
        compared = [one for one in result.arms if one.contrast is not None]
        settings = settings_for(result.env)
        for column, (measure, title) in enumerate(_SHOWN.items()):
            axes = figure.add_subplot(grid[row, column])
            axes.axvline(0, color="#444444", linewidth=0.8)
            if (null := result.nulls.get(Arm("ppo"))) is not None:
                mean, sd = null.mean_curve[measure]
                axes.axvspan(100 * (mean - 2 * sd), 100 * (mean + 2 * sd), color=GREY, alpha=0.15, linewidth=0)
            for place, one in enumerate(compared):
                assert one.contrast is not None
                found = one.contrast.mean_curve[measure]
                axes.plot([100 * found.low, 100 * found.high], [place, place], color=_colour(one.arm), linewidth=2)
                axes.plot(100 * found.value, place, "o", color=_colour(one.arm), markersize=5)
                reported = settings.reported.get(one.arm.optimizer or settings.optimizer, {})
                clipping = one.arm.max_grad_norm in (0.5, float("inf"))  # the paper's text, and its code
                the_papers = clipping and replace(one.arm, optimizer=None, max_grad_norm=0.5) == Arm(
                    "iif", settings.drop
                )
                if the_papers and (value := _value(reported, measure)):
                    axes.plot(value, place, "*", color=RED, markersize=11)
            axes.set_yticks(range(len(compared)), [str(one.arm) for one in compared] if column == 0 else [])
            axes.set_ylim(len(compared) - 0.5, -0.5)
            axes.set_xlim(-105, 105)
            axes.grid(axis="x", alpha=0.3)
            if row == 0:
                axes.set_title(f"{title}, % less than PPO")
            if column == 0:
                axes.set_ylabel(result.env, fontsize=9)
    figure.suptitle(
        "dots: ours, 95 % bootstrap over seeds; stars: the paper; grey: PPO against itself, ± 2 sd", fontsize=9
    )
    return save_figure(figure, path)


def write(results: Sequence[EnvResult], path: Path) -> Path:
    """The page: learning curves of every environment, arms switched on and off in the legend.

    Raises:
        RollsightError: the file cannot be written.
    """
    panels = [
        Panel(
            f"curves{index}",
            result.env,
            "Mean evaluation return over seeds with its 95 % band; click an arm in the legend to hide it, twice to see "
            "it alone.",
            _interactive(result),
        )
        for index, result in enumerate(results)
    ]
    lead = "Each arm: " + "; ".join(f"{kind}: {text}" for kind, text in KINDS.items() if _used(results, kind)) + "."
    return write_page(path, "Iterative influence-based filtering: the paper's study, repeated", lead, panels)


def _interactive(result: EnvResult) -> go.Figure:
    figure = go.Figure()
    for one in result.arms:
        rounds, mean, half = _curve(one)
        name, colour = str(one.arm), _colour(one.arm)
        outline = {"x": [*rounds, *rounds[::-1]], "y": [*(mean + half), *(mean - half)[::-1]]}
        shared: dict[str, Any] = {"legendgroup": name, "visible": True if _plain(one.arm) else "legendonly"}
        line = {"color": colour, "dash": "solid" if _plain(one.arm) else "dash"}
        figure.add_scatter(
            **outline,
            fill="toself",
            opacity=0.15,
            line={"width": 0, "color": colour},
            hoverinfo="skip",
            showlegend=False,
            **shared,
        )
        figure.add_scatter(x=rounds, y=mean, name=f"{name} ({one.summary.seeds})", line=line, **shared)
    return dress(figure, 480, xaxis_title="round", yaxis_title="mean evaluation return", hovermode="x unified")


def _curve(one: ArmResult) -> tuple[Floats, Floats, Floats]:
    """Rounds, means and half-widths, each (R,); the half-width of one seed is 0."""
    curves = list(one.curves.values())
    mean, half = band([curve["return"] for curve in curves])
    return curves[0]["round"], mean, np.nan_to_num(half)


def _panels(result: EnvResult) -> dict[str, list[ArmResult]]:
    panels: dict[str, list[ArmResult]] = {}
    for one in result.arms:
        options = str(replace(one.arm, kind="ppo", p=None)).partition("@")[2]
        panels.setdefault(f", {options}" if options else "", []).append(one)
    return panels


def _label(one: ArmResult) -> str:
    return f"{str(one.arm).partition('@')[0]} ({one.summary.seeds} seed{'s' if one.summary.seeds > 1 else ''})"


def _plain(arm: Arm) -> bool:
    return "@" not in str(arm)


def _colour(arm: Arm) -> str:
    return str(qualitative.Dark24[list(KINDS).index(arm.kind)])


def _value(reported: Any, measure: str) -> float | None:
    found = reported.get("rt_peak" if measure == "rt_paper" else measure)
    return None if found is None else float(found[0] if isinstance(found, list) else found)


def _used(results: Sequence[EnvResult], kind: str) -> bool:
    return any(one.arm.kind == kind for result in results for one in result.arms)
