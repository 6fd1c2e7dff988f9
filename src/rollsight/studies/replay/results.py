"""What the study's folder holds, as tables and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rollsight.analysis.intervals import UNKNOWN, Interval, t_interval
from rollsight.errors import RollsightError
from rollsight.escaping import visible
from rollsight.studies import interval_plots, markdown, plots
from rollsight.studies.arms import used_kinds
from rollsight.studies.replay.arms import ReplayArm
from rollsight.studies.replay.cell import KEYS
from rollsight.studies.results import row
from rollsight.studies.store import Columns, stored

# Measure -> its heading, of learning and of finding the transitions with flipped rewards.
LEARNING = {
    "final": "final return",
    "area": "area",
    "value_rmse": "value error",
    "value_bias": "value bias",
    "trust_split_half": "halves agree",
    "trust_split_half_permuted": "halves, returns permuted",
    "agreement": "influence with TD error",
}
FINDING = {
    "auroc_influence": "low influence",
    "auroc_influence_low": "the same, values too low",
    "auroc_influence_high": "the same, values too high",
    "auroc_influence_size": "size of influence",
    "auroc_td": "TD error, loss",
    "auroc_age": "age",
    "auroc_reward": "low reward",
}
_DRAWN = ("final", "area", "value_rmse")
_CAPTION = (
    "Means with 95 % intervals over (seeds). Returns of 10 fresh greedy episodes in each round, of the environment "
    "without flipped rewards; final: the last tenth of the rounds; value error: root mean square of Q less return."
)


@dataclass(frozen=True, eq=False)
class Replays:
    """One environment.

    env: its name.
    against: the arm that the others are compared with.
    runs: arm -> seed -> measure -> its value.
    """

    env: str
    against: ReplayArm
    runs: Mapping[ReplayArm, Mapping[int, Mapping[str, float]]]

    def interval(self, arm: ReplayArm, measure: str) -> Interval:
        """Over seeds."""
        known = [values[measure] for values in self.runs[arm].values() if np.isfinite(values[measure])]
        return t_interval(known) if known else UNKNOWN

    def difference(self, arm: ReplayArm, measure: str) -> Interval:
        """Less that of `against`, paired by seed; nan where they have no seed in common."""
        mine, its = self.runs[arm], self.runs[self.against]
        pairs = [mine[seed][measure] - its[seed][measure] for seed in mine if seed in its]
        return t_interval(pairs) if pairs else UNKNOWN


def read_results(folder: Path, against: ReplayArm | None = None) -> list[Replays]:
    """Every environment in a folder. Arms are compared with uniform draws, or all `against` one arm.

    Raises:
        RollsightError: there is nothing in it, or nothing to compare `against`.
    """
    runs = dict[str, dict[ReplayArm, dict[int, Mapping[str, float]]]]()
    for (env, arm, seed), columns in stored(folder, KEYS).items():
        runs.setdefault(str(env), {}).setdefault(ReplayArm.of(str(arm)), {})[int(seed)] = _measured(columns)
    if not runs:
        raise RollsightError(f"{folder} holds no runs; run `rollsight study replay --out {folder}` first.")
    found = []
    for env, arms in runs.items():
        ordered = {arm: arms[arm] for arm in sorted(arms, key=lambda arm: arm.place)}
        standard = against or next(iter(ordered)).standard
        found.append(Replays(env, standard if standard in ordered else next(iter(ordered)), ordered))
    if against is not None and all(against not in one.runs for one in found):
        raise RollsightError(f"{folder} holds nothing to compare with {against}; choose an arm that it holds.")
    return found


def tables(results: Sequence[Replays]) -> str:
    """Two tables for each environment, and what the arms are."""
    arms = {arm for one in results for arm in one.runs}
    kinds = "\n".join(f"- `{name}`: {text}." for name, text in used_kinds(arms).items())
    return "\n\n".join([*map(_tables, results), kinds]) + "\n"


def rows(results: Sequence[Replays]) -> Iterator[dict[str, object]]:
    """Every figure in one long table: env, arm, seeds, measure, value, low, high."""
    for one in results:
        for arm in one.runs:
            of = {"env": one.env, "arm": arm, "seeds": len(one.runs[arm])}
            for measure in (*LEARNING, *FINDING):
                yield of | row(measure, one.interval(arm, measure))
                if arm != one.against and measure in LEARNING:
                    yield of | row(f"{measure}_difference", one.difference(arm, measure))


def draw(results: Sequence[Replays], path: Path) -> Path:
    """Final return, area and value error of every arm.

    Raises:
        RollsightError: the file cannot be written.
    """
    return interval_plots.draw([_plot(one) for one in results], path, _CAPTION)


def write(results: Sequence[Replays], path: Path) -> Path:
    """The same as a page.

    Raises:
        RollsightError: the file cannot be written.
    """
    panels = [interval_plots.panel(_plot(one), f"plot{place}", _CAPTION) for place, one in enumerate(results)]
    return plots.write(panels, path, "Replay by weight", {arm for one in results for arm in one.runs})


def _measured(columns: Columns) -> dict[str, float]:
    """Of one run: means over rounds, the final return over the last tenth of them; how well influence finds flipped
    rewards also over the rounds in which the held-out values are too low, and too high."""
    returns = columns["return"]
    last = max(1, len(returns) // 10)
    found, bias = columns["auroc_influence"], columns["value_bias"]
    return {
        **{name: _mean(columns[name]) for name in (*LEARNING, *FINDING) if name in columns},
        "final": _mean(returns[-last:]),
        "area": _mean(returns),
        "auroc_influence_low": _mean(found[bias < 0]),
        "auroc_influence_high": _mean(found[bias > 0]),
    }


def _mean(values: np.ndarray) -> float:
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else float("nan")


def _tables(result: Replays) -> str:
    against = result.against
    seeds = ", ".join(f"`{arm}` {len(by_seed)}" for arm, by_seed in result.runs.items())
    learning = [
        [
            f"`{arm}`",
            *(markdown.mean(result.interval(arm, measure)) for measure in LEARNING),
            *("" if arm == against else markdown.mean(result.difference(arm, name)) for name in ("final", "area")),
        ]
        for arm in result.runs
    ]
    finding = [[f"`{arm}`", *(markdown.mean(result.interval(arm, name)) for name in FINDING)] for arm in result.runs]
    less = [f"{LEARNING[name]}, less `{against}`'s" for name in ("final", "area")]
    return "\n\n".join(
        [
            f"## {visible(result.env)}",
            f"Seeds: {seeds}. Means over rounds and seeds, ± 95 % t-interval over seeds; differences paired by seed.",
            markdown.table(["arm", *LEARNING.values(), *less], learning),
            "AUROC of rankings for the transitions with flipped rewards (0.5 is chance):",
            markdown.table(["trained by", *FINDING.values()], finding),
        ]
    )


def _plot(result: Replays) -> interval_plots.IntervalPlot:
    arms = list(result.runs)
    columns = [
        interval_plots.column_of(LEARNING[measure], [result.interval(arm, measure) for arm in arms])
        for measure in _DRAWN
    ]
    names = [f"{arm.name} ({len(result.runs[arm])})" for arm in arms]
    return interval_plots.IntervalPlot(result.env, names, [plots.colour(arm.kind_number) for arm in arms], columns)
