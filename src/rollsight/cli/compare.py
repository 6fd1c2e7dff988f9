"""`rollsight compare`: learning curves of several runs, arm against arm."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from rollsight import runs
from rollsight.analysis.drawing import STILL, check_figure
from rollsight.analysis.intervals import Interval
from rollsight.analysis.learning_curves import Comparison, compare_runs, describe_rounds, draw_curves
from rollsight.cli import output
from rollsight.errors import RollsightError
from rollsight.escaping import visible
from rollsight.runs import Run


def compare(
    paths: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...", help_behavior_hint="(required)")],
    /,
    *,
    baseline: Annotated[
        str | None, tyro.conf.arg(metavar="ARM", help_behavior_hint="(default: the arm of the first run)")
    ] = None,
    json: bool = False,
    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    overwrite: bool = False,
) -> None:
    """Compare runs: final return and area under the learning curve, with 95 % intervals over seeds.

    - Runs are grouped by the environment and arm in their metadata. Without an arm it is the name that counts: worst-0
      and worst-1, of seeds 0 and 1, are the arm worst.
    - Final return: mean over the last tenth of the rounds. Area: mean over all rounds.
    - Both come from evaluation episodes; where a run has none, from training episodes.
    - Differences are paired: the same seed in both arms.

    Example: rollsight compare runs/ --baseline ppo --figure curves.png

    Args:
        paths: Run folders, or folders of run folders.
        baseline: The arm that the others are compared with.
        json: Print JSON instead of tables.
        figure: Draw the learning curves with 95 % bands (.png, .pdf or .svg).
        overwrite: Replace the figure if it is there.
    """
    if not paths:
        raise RollsightError("there is nothing to compare: name at least one run folder")
    if figure is not None:
        check_figure(figure, STILL)
        output.check_free([figure], overwrite=overwrite)
    comparisons = compare_runs(open_runs(paths), baseline)
    if figure is not None:
        draw_curves(comparisons, figure)
    if json:
        output.print_json([as_json(comparison) for comparison in comparisons])
        return
    console = output.console()
    for index, comparison in enumerate(comparisons):
        console.print("\n" if index else "", end="")
        show(comparison, console)
    if figure is not None:
        console.print(f"learning curves: {visible(str(figure))}", soft_wrap=True)


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at these paths, each once. A folder of runs stands for the runs in it, the oldest first.

    Raises:
        RollsightError: a path is neither a run nor a folder of runs.
    """
    opened: dict[Path, Run] = {}
    for path in paths:
        inside = [] if runs.is_run(path) else [runs.open(child) for child in runs.find_runs(path)]
        for run in sorted(inside, key=lambda run: str(run.metadata.get("created"))) or [runs.open(path)]:
            opened.setdefault(run.path.resolve(), run)
    return list(opened.values())


def show(comparison: Comparison, console: Console) -> None:
    """Print one environment's comparison as a table."""
    columns = ["arm", "runs", "final return", "area under curve"]
    others = len(comparison.arms) > 1
    if others:
        columns += [f"final vs {comparison.baseline}", f"area vs {comparison.baseline}"]
    rows = []
    for arm in comparison.arms:
        row = [arm.name, str(arm.runs), _spell(arm.final), _spell(arm.area)]
        if others:
            row += [_spell(arm.final_difference), _spell(arm.area_difference)]
        rows.append(row)
    title = f"{visible(comparison.env)}: {comparison.measure}, {describe_rounds(comparison.rounds.tolist())}"
    console.print(output.table(columns, rows, title=title))
    single = any(arm.final.n == 1 for arm in comparison.arms)
    console.print(
        "mean ± 95 % t-interval over seeds"
        + (", none for a single seed" if single else "")
        + ("; differences on the same seeds" if others else "")
    )
    for note in comparison.notes:
        console.print(f"note: {visible(note)}", soft_wrap=True)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """One environment's comparison as plain data, learning curves included."""
    arms = [{name: _plain(value) for name, value in vars(arm).items()} for arm in comparison.arms]
    return vars(comparison) | {"arms": arms}


def _plain(value: Any) -> Any:
    if not isinstance(value, Interval):
        return value
    return {
        "mean": value.value,
        "half_width": None if math.isnan(value.half_width) else value.half_width,
        "n": value.n,
    }


def _spell(interval: Interval | None) -> str:
    """Mean ± half-width, to the decimals that the width supports."""
    if interval is None:
        return "-"
    if math.isnan(interval.half_width):
        return f"{interval.value:.4g}"
    decimals = next((d for d in range(4) if interval.half_width * 10**d >= 10), 3)
    return f"{interval.value:.{decimals}f} ± {interval.half_width:.{decimals}f}"
