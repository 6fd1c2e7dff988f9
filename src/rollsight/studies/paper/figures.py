"""The study as pictures, and as one page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rollsight.analysis.drawing import GREY, RED, new_figure, save_figure
from rollsight.studies import plots
from rollsight.studies.paper.arms import KINDS, Arm
from rollsight.studies.paper.results import ArmResult, EnvResult
from rollsight.studies.paper.study import named
from rollsight.studies.settings import EnvSettings, rates, settings_for

# A setting's name, its axis, its value in an arm, and the arm without it.
_SWEPT: tuple[tuple[str, str, Callable[[Arm], float], Callable[[Arm], Arm]], ...] = (
    (
        "p",
        "p, share of the negative records that is dropped",
        lambda arm: arm.p or 0.0,
        lambda arm: replace(arm, p=None),
    ),
    ("learning rate", "learning rate", lambda arm: arm.lr or 0.0, lambda arm: replace(arm, lr=None)),
)
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
    resolved = [(one.arm.resolved(settings), one) for one in result.arms]
    for name, label, value, without in _SWEPT:
        swept: dict[Arm, dict[float, ArmResult]] = {}
        for arm, one in resolved:
            swept.setdefault(without(arm), {})[value(arm)] = one
        plotted: dict[Arm, dict[Arm, dict[float, ArmResult]]] = {}
        for arm, ones in swept.items():
            if len(ones) > 2:
                plotted.setdefault(replace(arm, kind="ppo", p=None), {})[arm] = ones
        for standard, arms in plotted.items():
            values = [x for ones in arms.values() for x in ones]
            if standard in swept and standard not in arms:  # PPO has no p of its own: a level line
                level = next(iter(swept[standard].values()))
                arms = {standard: {min(values): level, max(values): level}, **arms}
            options = str(named(standard, settings)).partition("@")[2]
            for measure, meaning in (("final", "final return"), ("area", "area: mean return of all rounds")):
                lines = [_swept(_kind(arm), ones, measure) for arm, ones in arms.items()]
                title = f"{result.env}{options and ', '}{options}: {measure} by {name}"
                yield plots.Axes(label, meaning, lines, title, log=True)


def _swept(name: str, ones: Mapping[float, ArmResult], measure: str) -> plots.Line:
    """An arm at several values, with 95 % intervals over seeds."""
    values = sorted(ones)
    mean, half = np.array([_interval(ones[value], measure) for value in values]).T
    return plots.Line(name, plots.colour(_place(ones[values[0]].arm)), np.array(values), mean, half)


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
    return arm in {named(Arm("iif", None, kind, None, clip), settings) for kind in rates() for clip in _CLIPS}


def _value(reported: Any, measure: str) -> float | None:
    found = reported.get("rt_peak" if measure == "rt_paper" else measure)
    return None if found is None else float(found[0] if isinstance(found, list) else found)


def _used(results: Sequence[EnvResult], kind: str) -> bool:
    return any(one.arm.kind == kind for result in results for one in result.arms)
