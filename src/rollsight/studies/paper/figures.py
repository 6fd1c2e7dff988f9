"""The study as pictures, and as one page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from rollsight.analysis.page import Panel
from rollsight.studies import interval_plots, plots
from rollsight.studies.interval_plots import Dot
from rollsight.studies.metrics import Null
from rollsight.studies.paper.results import ArmResult, EnvResult
from rollsight.studies.ppo_arms import PPOArm
from rollsight.training.paper import EnvSettings, rates, settings_for

# A setting's name, its axis, its value in an arm, and the arm without it.
_SWEPT: tuple[tuple[str, str, Callable[[PPOArm], float], Callable[[PPOArm], PPOArm]], ...] = (
    (
        "p",
        "p, share of the negative records that is dropped",
        lambda arm: arm.p or 0.0,
        lambda arm: replace(arm, p=None),
    ),
    ("learning rate", "learning rate", lambda arm: arm.lr or 0.0, lambda arm: replace(arm, lr=None)),
)
_CLIPS = (0.5, float("inf"))
_CAPTION = (
    "Dots with 95 % intervals over (seeds), right of the line is better; stars: the paper; grey: PPO against itself, "
    "± 2 sd."
)
_SAVED = {"se_ave": "SE_ave", "se_peak": "SE_peak", "rt_paper": "RT_peak"}
# The arms that a study runs everywhere; curves show the others with PPO in a panel of their own.
_MAIN = ("ppo", "iif", "random", "permuted", "matched-norm", "matched-kl")


def draw_curves(result: EnvResult, path: Path) -> Path:
    """Learning curves, mean and 95 % band over seeds, in the plots of `panels`.

    Raises:
        RollsightError: the file cannot be written.
    """
    drawn = list(panels(result))
    columns = min(3, len(drawn))
    return plots.draw(drawn, path, columns, (6.4 * columns, 4.4 * -(-len(drawn) // columns)))


def draw_comparisons(result: EnvResult, path: Path) -> Path | None:
    """`comparisons`, a row of plots for each set of options; None where nothing can be compared.

    Raises:
        RollsightError: the file cannot be written.
    """
    compared = list(comparisons(result))
    return interval_plots.draw(compared, path, _CAPTION) if compared else None


def draw_sweeps(results: Sequence[EnvResult], path: Path) -> Path | None:
    """Final return and area by p and by learning rate, for arms with three values or more; None where there are none.

    Raises:
        RollsightError: the file cannot be written.
    """
    drawn = [axes for result in results for axes in sweeps(result)]
    return plots.draw(drawn, path, 2, (12.8, 2.1 * len(drawn))) if drawn else None


def write(results: Sequence[EnvResult], path: Path) -> Path:
    """The page: learning curves of every environment and sweeps, arms switched on and off in the legend, and every arm
    against its PPO.

    Raises:
        RollsightError: the file cannot be written.
    """
    arms = {one.arm for result in results for one in result.arms}
    drawn = list[Panel]()
    for result in results:
        drawn += plots.panels((*panels(result), *sweeps(result)), len(drawn))
        compared = enumerate(comparisons(result), len(drawn))
        drawn += [interval_plots.panel(one, f"plot{place}", _CAPTION) for place, one in compared]
    return plots.write(drawn, path, "Iterative influence-based filtering: the paper's study, repeated", arms)


def panels(result: EnvResult) -> Iterator[plots.Axes]:
    """Learning curves: for each set of options the main arms, and the others with PPO. Of a kind of arms that has the
    paper's p, other values of p are left to `sweeps`: they would have its colour."""
    arms, settings = {one.arm for one in result.arms}, settings_for(result.env)
    for options, ones in _by_options(result):
        shown = [
            one for one in ones if one.arm == (usual := replace(one.arm, p=None).named(settings)) or usual not in arms
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
        swept: dict[PPOArm, dict[float, ArmResult]] = {}
        for arm, one in resolved:
            swept.setdefault(without(arm), {})[value(arm)] = one
        plotted: dict[PPOArm, dict[PPOArm, dict[float, ArmResult]]] = {}
        for arm, ones in swept.items():
            if len(ones) > 2:
                plotted.setdefault(arm.standard, {})[arm] = ones
        for standard, arms in plotted.items():
            values = [x for ones in arms.values() for x in ones]
            if standard in swept and standard not in arms:  # PPO has no p of its own: a level line
                level = next(iter(swept[standard].values()))
                arms = {standard: {min(values): level, max(values): level}, **arms}
            options = without(standard.named(settings)).written_options
            for measure, meaning in (("final", "final return"), ("area", "area: mean return of all rounds")):
                lines = [_swept(arm.name, ones, measure) for arm, ones in arms.items()]
                title = f"{result.env}{options and ', '}{options}: {measure} by {name}"
                yield plots.Axes(label, meaning, lines, title, log=True)


def comparisons(result: EnvResult) -> Iterator[interval_plots.IntervalPlot]:
    """Every arm minus its PPO, in final return and area, paired by seed with 95 % t-intervals; and what it saves, of
    the mean curves with bootstrap intervals; with the paper's figures and the null of PPO against itself. One for each
    set of options that has arms to compare."""
    settings = settings_for(result.env)
    for options, ones in _by_options(result):
        if not (arms := [one for one in ones if one.contrast and one.arm.kind != "ppo"]):
            continue
        null = result.nulls.get(arms[0].against) if arms[0].against else None
        columns = [_difference(arms, "final", "final return", settings), _difference(arms, "area", "area", settings)]
        columns += [_saving(arms, measure, null, settings) for measure in _SAVED]
        names = [f"{one.arm.name} ({one.summary.seeds})" for one in arms]
        colours = [plots.colour(one.arm.kind_number) for one in arms]
        yield interval_plots.IntervalPlot(f"{result.env}{options}: arms against PPO", names, colours, columns)


def _swept(name: str, ones: Mapping[float, ArmResult], measure: str) -> plots.Line:
    """An arm at several values, with 95 % intervals over seeds."""
    values = sorted(ones)
    mean, half = np.array([_interval(ones[value], measure) for value in values]).T
    return plots.Line(name, plots.colour(ones[values[0]].arm.kind_number), np.array(values), mean, half)


def _interval(one: ArmResult, measure: str) -> tuple[float, float]:
    found = one.summary.final if measure == "final" else one.summary.area
    return found.value, float(np.nan_to_num(found.half_width))


def _by_options(result: EnvResult) -> Iterator[tuple[str, list[ArmResult]]]:
    """Arms that have all but kind and p in common, by how their options are written."""
    for standard, arms in groupby(result.arms, lambda one: one.arm.standard):
        options = standard.written_options
        yield f", {options}" if options else "", list(arms)


def _axes(arms: Sequence[ArmResult], title: str) -> plots.Axes:
    lines = [plots.by_round(one.arm, one.curves.values(), "return", one.arm.name) for one in arms]
    return plots.Axes("round", "mean evaluation return", lines, title)


def _difference(arms: Sequence[ArmResult], measure: str, name: str, settings: EnvSettings) -> interval_plots.Column:
    """The axis wide enough for every mean: an interval of two or three seeds may leave it."""
    found, shown = list[Dot](), list[float]()
    for one in arms:
        interval = getattr(one.contrast, measure)
        reported = _reported(one.arm, settings).get("final_gain", ()) if measure == "final" else ()
        found.append(Dot(interval.value, interval.low, interval.high, tuple(reported)))
        half = float(np.nan_to_num(interval.half_width)) / 2
        shown += [abs(interval.value) + half, found[-1].star if reported else 0.0]
    reach = 1.1 * max(shown) or 1.0
    return interval_plots.Column(f"{name}, over PPO", found, (-reach, reach))


def _saving(arms: Sequence[ArmResult], measure: str, null: Null | None, settings: EnvSettings) -> interval_plots.Column:
    found, span = list[Dot](), None
    for one in arms:
        assert one.contrast is not None
        saved = one.contrast.mean_curve[measure]
        value = _reported(one.arm, settings).get("rt_peak" if measure == "rt_paper" else measure, ())
        reported = tuple(value[:1]) if isinstance(value, list) else (value,) if value != () else ()
        found.append(Dot(100 * saved.value, 100 * saved.low, 100 * saved.high, reported))
    if null is not None:
        mean, sd = null.mean_curve[measure]
        span = 100 * (mean - 2 * sd), 100 * (mean + 2 * sd)
    return interval_plots.Column(f"{_SAVED[measure]}, % less", found, (-105, 105), span)


def _reported(arm: PPOArm, settings: EnvSettings) -> Mapping[str, Any]:
    """What the paper says of an arm: IIF at its p and its optimisers' rates, clipped as its text says, or not at all as
    its code."""
    papers = {PPOArm("iif", optimizer=kind, max_grad_norm=clip).named(settings) for kind in rates() for clip in _CLIPS}
    return settings.reported.get(arm.optimizer or settings.optimizer, {}) if arm in papers else {}
