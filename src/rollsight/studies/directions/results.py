"""What the study's folder holds, as a table and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rollsight.analysis.intervals import Interval, t_interval
from rollsight.errors import RollsightError
from rollsight.escaping import visible
from rollsight.studies import interval_plots, markdown, plots
from rollsight.studies.ppo_arms import PPOArm
from rollsight.studies.results import row
from rollsight.studies.store import Columns, stored
from rollsight.training.paper import settings_for

KEYS = ("env", "trained", "seed")
# Measure -> its heading.
MEASURES = {
    "length": "length",
    "along_own": "along own gradient",
    "along_fresh": "along fresh gradient",
    "gain_own": "gain, own records",
    "gain_fresh": "gain, fresh records",
    "kl": "KL",
}
_DIFFERENCES = ("along_fresh", "gain_fresh", "kl")  # those whose differences between arms are given as well
_DRAWN = ("length", "along_own", "along_fresh", "gain_own", "gain_fresh")
_CAPTION = (
    "Updates of every arm from the same rounds of {arm}'s runs; dots with 95 % intervals over (seeds). Length: {arm}'s "
    "is 1. Along: cosine with the gradient of the return. Gain: of PPO's objective, in thousandths."
)


@dataclass(frozen=True, eq=False)
class Directions:
    """One environment and the arm that trained in it.

    env: name of the environment.
    trained: the arm that trained.
    against: the arm that the others are compared with.
    means: arm -> measure -> its mean over rounds, one per seed.
    """

    env: str
    trained: PPOArm
    against: PPOArm
    means: Mapping[PPOArm, Mapping[str, Sequence[float]]]

    def interval(self, arm: PPOArm, measure: str) -> Interval:
        """Over seeds."""
        return t_interval(self.means[arm][measure])

    def difference(self, arm: PPOArm, measure: str) -> Interval:
        """Less that of `against`, paired by seed."""
        mine, its = (np.array(self.means[one][measure]) for one in (arm, self.against))
        return t_interval(mine - its)


def read_results(folder: Path, against: PPOArm | None = None) -> list[Directions]:
    """Every environment and training arm in a folder; arms that all of its seeds have. Arms are compared with the one
    that trained, or all `against` one arm, where it is.

    Raises:
        RollsightError: there is nothing in it, or none to compare `against`.
    """
    runs = dict[tuple[str, PPOArm], list[Columns]]()
    for (env, arm, _), columns in stored(folder, KEYS).items():
        runs.setdefault((str(env), PPOArm.of(str(arm))), []).append(columns)
    found = [_directions(env, arm, by_seed) for (env, arm), by_seed in runs.items()]
    if not found:
        raise RollsightError(f"{folder} holds no directions; run `rollsight study directions --out {folder}` first.")
    if against is None:
        return found
    chosen = [(result, against.named(settings_for(result.env))) for result in found]
    compared = [replace(result, against=arm) for result, arm in chosen if arm in result.means]
    if not compared:
        raise RollsightError(f"{folder} holds nothing to compare with {against}; choose an arm that it holds.")
    return compared


def tables(results: Sequence[Directions]) -> str:
    """A table for each environment and training arm."""
    return "\n\n".join(_table(result) for result in results) + "\n"


def rows(results: Sequence[Directions]) -> Iterator[dict[str, object]]:
    """Every figure in one long table: env, trained, arm, seeds, measure, value, low, high."""
    for result in results:
        for arm in result.means:
            of = {"env": result.env, "trained": result.trained, "arm": arm}
            for measure, found in _figures(result, arm):
                yield of | {"seeds": found.n} | row(measure, found)


def draw(results: Sequence[Directions], path: Path) -> Path:
    """Length, cosines and gains of every arm.

    Raises:
        RollsightError: the file cannot be written.
    """
    return interval_plots.draw([_plot(result) for result in results], path, _caption(results))


def write(results: Sequence[Directions], path: Path) -> Path:
    """The same as a page.

    Raises:
        RollsightError: the file cannot be written.
    """
    panels = [interval_plots.panel(_plot(r), f"plot{place}", _caption([r])) for place, r in enumerate(results)]
    return plots.write(panels, path, "Which way the arms go", {arm for result in results for arm in result.means})


def _directions(env: str, trained: PPOArm, by_seed: Sequence[Columns]) -> Directions:
    common = set.intersection(*(set(columns["arm"]) for columns in by_seed))
    means = {
        PPOArm.of(name): {
            measure: [float(np.nanmean(columns[measure][columns["arm"] == name])) for columns in by_seed]
            for measure in MEASURES
        }
        for name in dict.fromkeys(by_seed[0]["arm"])
        if name in common
    }
    return Directions(env, trained, trained, means)


def _table(result: Directions) -> str:
    trained, against = result.trained, result.against
    columns = ["arm", *MEASURES.values(), *(f"{MEASURES[name]}, less `{against}`'s" for name in _DIFFERENCES)]
    rows = []
    for arm in result.means:
        cells = [markdown.mean(result.interval(arm, measure)) for measure in MEASURES]
        cells += ["" if arm == against else markdown.mean(result.difference(arm, measure)) for measure in _DIFFERENCES]
        rows.append([f"`{arm}`", *cells])
    seeds = len(next(iter(result.means[trained].values())))
    head = (
        f"## {visible(result.env)}, `{trained}` trains\n\n{seeds} seed{'s' * (seeds > 1)}; means over compared rounds, "
        f"± 95 % t-interval over seeds. Every arm's update starts from the same rounds. Length in units of "
        f"`{trained}`'s; gains of PPO's objective in thousandths.\n\n"
    )
    return head + markdown.table(columns, rows)


def _figures(result: Directions, arm: PPOArm) -> Iterator[tuple[str, Interval]]:
    for measure in MEASURES:
        yield measure, result.interval(arm, measure)
    if arm != result.against:
        for measure in _DIFFERENCES:
            yield f"{measure}_difference", result.difference(arm, measure)


def _plot(result: Directions) -> interval_plots.IntervalPlot:
    arms = list(result.means)
    columns = [
        interval_plots.column_of(MEASURES[measure], [result.interval(arm, measure) for arm in arms])
        for measure in _DRAWN
    ]
    names = [f"{arm.name} ({result.interval(arm, 'length').n})" for arm in arms]
    colours = [plots.colour(arm.kind_number) for arm in arms]
    return interval_plots.IntervalPlot(f"{result.env}, {result.trained} trains", names, colours, columns)


def _caption(results: Sequence[Directions]) -> str:
    trained = {str(result.trained) for result in results}
    return _CAPTION.format(arm=trained.pop() if len(trained) == 1 else "the training arm")
