"""The study as pictures, and as one page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rollsight.analysis.drawing import GREY, RED, new_figure, save_figure
from rollsight.studies import plots
from rollsight.studies.paper.arms import KINDS, Arm
from rollsight.studies.paper.results import ArmResult, EnvResult
from rollsight.studies.paper.study import named
from rollsight.studies.settings import EnvSettings, Optimizer, settings_for

_SWEPT: tuple[tuple[str, Callable[[Arm], float], Callable[[Arm], Arm]], ...] = (
    ("p, share of the negative records that is dropped", lambda arm: arm.p or 0.0, lambda arm: replace(arm, p=None)),
    ("learning rate", lambda arm: arm.lr or 0.0, lambda arm: replace(arm, lr=None)),
)
_OPTIMIZERS: tuple[Optimizer, ...] = ("sgd", "adam")
_CLIPS = (0.5, float("inf"))
_SHOWN = {"se_ave": "SE_ave", "se_peak": "SE_peak", "rt_paper": "RT_peak"}


def draw_curves(result: EnvResult, path: Path) -> Path:
    """Learning curves, mean and 95 % band over seeds; a panel for each set of options. Of a kind of arms that has the
    paper's p, other values of p are left to `draw_sweeps`: they would have its colour.

    Raises:
        RollsightError: the file cannot be written.
    """
    panels = _panels(result)
    drawn = [_axes(arms, f"{result.env}{options}", _kind) for options, arms in panels.items()]
    return plots.draw(drawn, path, len(drawn), (6.4 * len(drawn), 4.4))


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
                found, colour = one.contrast.mean_curve[measure], plots.colour(_place(one.arm))
                axes.plot([100 * found.low, 100 * found.high], [place, place], color=colour, linewidth=2)
                axes.plot(100 * found.value, place, "o", color=colour, markersize=5)
                reported = settings.reported.get(one.arm.optimizer or settings.optimizer, {})
                if _is_the_papers(one.arm, settings) and (value := _value(reported, measure)):
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


def draw_sweeps(results: Sequence[EnvResult], path: Path) -> Path | None:
    """Final return and area by p and by learning rate, for arms with three values or more; None where there are none.

    Raises:
        RollsightError: the file cannot be written.
    """
    drawn = [axes for result in results for axes in sweeps(result)]
    return plots.draw(drawn, path, 2, (12.8, 2.1 * len(drawn))) if drawn else None


def write(results: Sequence[EnvResult], path: Path) -> Path:
    """The page: learning curves of every environment and sweeps, arms switched on and off in the legend.

    Raises:
        RollsightError: the file cannot be written.
    """
    kinds = {kind: text for kind, text in KINDS.items() if _used(results, kind)}
    drawn = [_axes(result.arms, result.env, str) for result in results]
    drawn += [axes for result in results for axes in sweeps(result)]
    return plots.write(drawn, path, "Iterative influence-based filtering: the paper's study, repeated", kinds)


def _axes(arms: Sequence[ArmResult], title: str, name: Callable[[Arm], str]) -> plots.Axes:
    lines = [
        plots.by_round(name(one.arm), _place(one.arm), one.curves.values(), "return", _plain(one.arm)) for one in arms
    ]
    return plots.Axes("round", "mean evaluation return", lines, title)


def sweeps(result: EnvResult) -> Iterator[plots.Axes]:
    """Two plots, final return and area, for each setting that takes three values or more while the others stay."""
    settings = settings_for(result.env)
    for label, value, without in _SWEPT:
        swept: dict[Arm, list[ArmResult]] = {}
        for one in result.arms:
            swept.setdefault(without(one.arm.resolved(settings)), []).append(one)
        plotted: dict[Arm, dict[Arm, list[ArmResult]]] = {}
        for arm, ones in swept.items():
            if len(ones) > 2:
                plotted.setdefault(replace(arm, kind="ppo", p=None), {})[arm] = ones
        for standard, arms in plotted.items():
            values = [value(one.arm.resolved(settings)) for ones in arms.values() for one in ones]
            beside = swept.get(standard, []) if standard not in arms else []  # no value of its own: a level line
            options = str(named(standard, settings)).partition("@")[2]
            for measure, meaning in (("final", "final return"), ("area", "area: mean return of all rounds")):
                lines = [_level(one, values, measure) for one in beside]
                for arm, ones in arms.items():
                    lines.append(_swept(_kind(arm), ones, [value(one.arm.resolved(settings)) for one in ones], measure))
                title = f"{result.env}{options and ', '}{options}"
                yield plots.Axes(label, meaning, lines, title, log=True)


def _swept(name: str, ones: Sequence[ArmResult], values: Sequence[float], measure: str) -> plots.Line:
    """An arm at several values, with 95 % intervals over seeds."""
    order = np.argsort(values)
    found = [_interval(ones[i], measure) for i in order]
    x, mean, half = np.array(values)[order], *(np.array(column) for column in zip(*found, strict=True))
    return plots.Line(name, plots.colour(_place(ones[0].arm)), x, mean, half)


def _level(one: ArmResult, values: Sequence[float], measure: str) -> plots.Line:
    """An arm without such a value, beside those that have one."""
    mean, half = _interval(one, measure)
    ends = np.array([min(values), max(values)])
    return plots.Line(one.arm.kind, plots.colour(_place(one.arm)), ends, np.full(2, mean), np.full(2, half))


def _interval(one: ArmResult, measure: str) -> tuple[float, float]:
    found = one.summary.final if measure == "final" else one.summary.area
    return found.mean, found.half_width or 0.0


def _panels(result: EnvResult) -> dict[str, list[ArmResult]]:
    panels: dict[str, list[ArmResult]] = {}
    arms, settings = {one.arm for one in result.arms}, settings_for(result.env)
    for one in result.arms:
        usual = named(replace(one.arm, p=None), settings)
        if one.arm != usual and usual in arms:
            continue
        options = str(replace(one.arm, kind="ppo", p=None)).partition("@")[2]
        panels.setdefault(f", {options}" if options else "", []).append(one)
    return panels


def _kind(arm: Arm) -> str:
    """Without its options."""
    return str(arm).partition("@")[0]


def _plain(arm: Arm) -> bool:
    return "@" not in str(arm)


def _place(arm: Arm) -> int:
    return list(KINDS).index(arm.kind)


def _is_the_papers(arm: Arm, settings: EnvSettings) -> bool:
    """IIF at the paper's p and its optimisers' rates; clipped as its text says, or not at all as its code."""
    known = {named(Arm("iif", None, optimizer, None, clip), settings) for optimizer in _OPTIMIZERS for clip in _CLIPS}
    return arm in known


def _value(reported: Any, measure: str) -> float | None:
    found = reported.get("rt_peak" if measure == "rt_paper" else measure)
    return None if found is None else float(found[0] if isinstance(found, list) else found)


def _used(results: Sequence[EnvResult], kind: str) -> bool:
    return any(one.arm.kind == kind for result in results for one in result.arms)
