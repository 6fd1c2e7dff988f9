"""The study as pictures, and as one page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from rollsight.analysis.drawing import GREY, RED, new_figure, save_figure
from rollsight.studies import plots
from rollsight.studies.paper.arms import KINDS, Arm
from rollsight.studies.paper.metrics import Estimate, Null, estimate_of
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
_SAVED = {"se_ave": "SE_ave", "se_peak": "SE_peak", "rt_paper": "RT_peak"}
# The arms that a study runs everywhere; curves show the others beside PPO in a panel of their own.
_MAIN = ("ppo", "iif", "random", "permuted", "matched-norm")


def draw_curves(result: EnvResult, path: Path) -> Path:
    """Learning curves, mean and 95 % band over seeds, in the plots of `panels`.

    Raises:
        RollsightError: the file cannot be written.
    """
    drawn = list(panels(result))
    columns = min(3, len(drawn))
    return plots.draw(drawn, path, columns, (6.4 * columns, 4.4 * -(-len(drawn) // columns)))


def draw_comparisons(result: EnvResult, path: Path) -> Path | None:
    """Every arm less its PPO, in final return and area, paired by seed with 95 % t-intervals; and what it saves, of the
    mean curves with bootstrap intervals; beside the paper's figures and the null of PPO against itself. A row for each
    set of options; None where nothing can be compared.

    Raises:
        RollsightError: the file cannot be written.
    """
    rows = [
        rest
        for _, arms in _by_options(result)
        if (rest := [one for one in arms if one.contrast and one.arm.kind != "ppo"])
    ]
    if not rows:
        return None
    settings, heights = settings_for(result.env), [len(arms) + 1.5 for arms in rows]
    figure = new_figure(15.0, 1.0 + 0.26 * sum(heights))
    grid = figure.add_gridspec(len(rows), 2 + len(_SAVED), height_ratios=heights)
    for row, arms in enumerate(rows):
        titles = ("final return, over PPO", "area, over PPO", *(f"{name}, % less" for name in _SAVED.values()))
        places = [figure.add_subplot(grid[row, column]) for column in range(len(titles))]
        for column, (axes, title) in enumerate(zip(places, titles, strict=True)):
            axes.axvline(0, color="#444444", linewidth=0.8)
            axes.set_yticks(range(len(arms)), [_counted(one) for one in arms] if column == 0 else [])
            axes.set_ylim(len(arms) - 0.5, -0.5)
            axes.grid(axis="x", alpha=0.3)
            axes.set_title(title if row == 0 else "", fontsize=10)
        _draw_differences(places[:2], arms, settings)
        _draw_savings(places[2:], arms, result.nulls, settings)
    figure.suptitle(
        f"{result.env}: dots and 95 % intervals over (seeds); stars: the paper; grey: PPO against itself, ± 2 sd",
        fontsize=9,
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
    drawn = [axes for result in results for axes in (*panels(result), *sweeps(result))]
    return plots.write(drawn, path, "Iterative influence-based filtering: the paper's study, repeated", kinds)


def panels(result: EnvResult) -> Iterator[plots.Axes]:
    """Learning curves: for each set of options the main arms, and the others beside PPO. Of a kind of arms that has the
    paper's p, other values of p are left to `sweeps`: they would have its colour."""
    arms, settings = {one.arm for one in result.arms}, settings_for(result.env)
    for options, ones in _by_options(result):
        shown = [
            one for one in ones if one.arm == (usual := named(replace(one.arm, p=None), settings)) or usual not in arms
        ]
        main = [one for one in shown if one.arm.kind in _MAIN]
        others = [one for one in shown if one.arm.kind not in _MAIN]
        if main:
            yield _axes(main, f"{result.env}{options}")
        if others:
            yield _axes([one for one in main if one.arm.kind == "ppo"] + others, f"{result.env}{options}: other arms")


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


def _by_options(result: EnvResult) -> Iterator[tuple[str, list[ArmResult]]]:
    """Arms that have all but kind and p in common, by how their options are written."""
    for standard, arms in groupby(result.arms, lambda one: replace(one.arm, kind="ppo", p=None)):
        options = str(standard).partition("@")[2]
        yield f", {options}" if options else "", list(arms)


def _axes(arms: Sequence[ArmResult], title: str) -> plots.Axes:
    lines = [plots.by_round(_kind(one.arm), _place(one.arm), one.curves.values(), "return") for one in arms]
    return plots.Axes("round", "mean evaluation return", lines, title)


def _draw_differences(places: Sequence[Any], arms: Sequence[ArmResult], settings: EnvSettings) -> None:
    """Final return and area, the axis wide enough for every mean: an interval of two or three seeds may leave it."""
    for axes, measure in zip(places, ("final", "area"), strict=True):
        shown = list[float]()
        for place, one in enumerate(arms):
            interval = getattr(one.contrast, measure)
            _draw_interval(axes, place, estimate_of(interval), one)
            shown += [interval.mean, (interval.half_width or 0.0) / 2]
            if measure == "final" and (reported := _reported(one.arm, settings).get("final_gain")):
                axes.plot(reported, [place, place], color=RED, linestyle=":")
                axes.plot(np.mean(reported), place, "*", color=RED, markersize=11)
                shown.append(float(np.mean(reported)))
        reach = 1.1 * float(np.abs(shown).max()) or 1.0
        axes.set_xlim(-reach, reach)


def _draw_savings(
    places: Sequence[Any], arms: Sequence[ArmResult], nulls: Mapping[Arm, Null], settings: EnvSettings
) -> None:
    for axes, measure in zip(places, _SAVED, strict=True):
        if arms[0].against is not None and (null := nulls.get(arms[0].against)) is not None:
            mean, sd = null.mean_curve[measure]
            axes.axvspan(100 * (mean - 2 * sd), 100 * (mean + 2 * sd), color=GREY, alpha=0.15, linewidth=0)
        for place, one in enumerate(arms):
            assert one.contrast is not None
            found = one.contrast.mean_curve[measure]
            _draw_interval(axes, place, Estimate(100 * found.value, 100 * found.low, 100 * found.high), one)
            if (value := _reported(one.arm, settings).get("rt_peak" if measure == "rt_paper" else measure)) is not None:
                axes.plot(value[0] if isinstance(value, list) else value, place, "*", color=RED, markersize=11)
        axes.set_xlim(-105, 105)


def _draw_interval(axes: Any, place: int, found: Estimate, one: ArmResult) -> None:
    axes.plot([found.low, found.high], [place, place], color=plots.colour(_place(one.arm)), linewidth=2)
    axes.plot(found.value, place, "o", color=plots.colour(_place(one.arm)), markersize=5)


def _counted(one: ArmResult) -> str:
    return f"{one.arm} ({one.summary.seeds})"


def _kind(arm: Arm) -> str:
    """Without its options."""
    return str(arm).partition("@")[0]


def _place(arm: Arm) -> int:
    return list(KINDS).index(arm.kind)


def _reported(arm: Arm, settings: EnvSettings) -> Mapping[str, Any]:
    """What the paper says of an arm: IIF at its p and its optimisers' rates, clipped as its text says, or not at all as
    its code."""
    papers = {named(Arm("iif", None, kind, None, clip), settings) for kind in rates() for clip in _CLIPS}
    return settings.reported.get(arm.optimizer or settings.optimizer, {}) if arm in papers else {}


def _used(results: Sequence[EnvResult], kind: str) -> bool:
    return any(one.arm.kind == kind for result in results for one in result.arms)
