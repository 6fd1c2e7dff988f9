"""What the study's folder holds, as a table and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rollsight.analysis.learning_curves import Interval, t_interval
from rollsight.analysis.page import write_page
from rollsight.errors import RollsightError
from rollsight.escaping import visible
from rollsight.studies import dots, plots
from rollsight.studies.curves import files_by_seed
from rollsight.studies.directions.cell import read_rows
from rollsight.studies.paper.arms import KINDS, Arm, arm_in, arm_of
from rollsight.studies.paper.study import named
from rollsight.studies.paper.tables import table
from rollsight.studies.results import row, write_table
from rollsight.training.paper import settings_for

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
    trained: Arm
    against: Arm
    means: Mapping[Arm, Mapping[str, Sequence[float]]]

    def interval(self, arm: Arm, measure: str) -> Interval:
        """Over seeds."""
        return t_interval(self.means[arm][measure])

    def difference(self, arm: Arm, measure: str) -> Interval:
        """Less that of `against`, paired by seed."""
        mine, its = (np.array(self.means[one][measure]) for one in (arm, self.against))
        return t_interval(mine - its)


def read_results(folder: Path, against: Arm | None = None) -> list[Directions]:
    """Every environment and training arm in a folder; arms that all of its seeds have. Arms are compared with the one
    that trained, or all `against` one arm, where it is.

    Raises:
        RollsightError: there is nothing in it, or none to compare `against`.
    """
    found = [_read(place) for place in sorted({path.parent for path in folder.glob("*/*/*.csv")})]
    if not found:
        raise RollsightError(f"{folder} holds no directions; run `rollsight study directions --out {folder}` first.")
    if against is None:
        return found
    chosen = [(result, named(against, settings_for(result.env))) for result in found]
    compared = [replace(result, against=arm) for result, arm in chosen if arm in result.means]
    if not compared:
        raise RollsightError(f"{folder} holds nothing to compare with {against}; choose an arm that it holds.")
    return compared


def markdown(results: Sequence[Directions]) -> str:
    """A table for each environment and training arm."""
    return "\n\n".join(_table(result) for result in results) + "\n"


def write_csv(results: Sequence[Directions], path: Path) -> None:
    """Every figure in one long table: env, trained, arm, seeds, measure, value, low, high."""
    write_table(
        path,
        [
            {"env": result.env, "trained": result.trained, "arm": arm, "seeds": found.n}
            | row(measure, found.mean, found.low, found.high)
            for result in results
            for arm in result.means
            for measure, found in _figures(result, arm)
        ],
    )


def draw(results: Sequence[Directions], path: Path) -> Path:
    """Length, cosines and gains of every arm.

    Raises:
        RollsightError: the file cannot be written.
    """
    return dots.draw([_dots(result) for result in results], path, _caption(results))


def write(results: Sequence[Directions], path: Path) -> Path:
    """The same as a page.

    Raises:
        RollsightError: the file cannot be written.
    """
    panels = [dots.panel(_dots(r), f"plot{place}", _caption([r])) for place, r in enumerate(results)]
    used = {arm.kind for result in results for arm in result.means}
    lead = "Each arm: " + "; ".join(f"{kind}: {text}" for kind, text in KINDS.items() if kind in used) + "."
    return write_page(path, "Which way the arms go", lead, panels)


def _read(place: Path) -> Directions:
    by_seed = [read_rows(path) for path in files_by_seed(place).values()]
    common = set.intersection(*({r["arm"] for r in rows} for rows in by_seed))
    arms = [name for name in dict.fromkeys(r["arm"] for r in by_seed[0]) if name in common]
    means = {
        arm_of(name): {
            measure: [float(np.nanmean([float(r[measure]) for r in rows if r["arm"] == name])) for rows in by_seed]
            for measure in MEASURES
        }
        for name in arms
    }
    return Directions(place.parent.name, arm_in(place.name), arm_in(place.name), means)


def _table(result: Directions) -> str:
    trained, against = result.trained, result.against
    columns = ["arm", *MEASURES.values(), *(f"{MEASURES[name]}, less `{against}`'s" for name in _DIFFERENCES)]
    rows = []
    for arm in result.means:
        cells = [_text(result.interval(arm, measure)) for measure in MEASURES]
        cells += ["" if arm == against else _text(result.difference(arm, measure)) for measure in _DIFFERENCES]
        rows.append([f"`{arm}`", *cells])
    seeds = len(next(iter(result.means[trained].values())))
    head = (
        f"## {visible(result.env)}, `{trained}` trains\n\n{seeds} seed{'s' * (seeds > 1)}; means over compared rounds, "
        f"± 95 % t-interval over seeds. Every arm's update starts from the same rounds. Length in units of "
        f"`{trained}`'s; gains of PPO's objective in thousandths.\n\n"
    )
    return head + table(columns, rows)


def _figures(result: Directions, arm: Arm) -> Iterator[tuple[str, Interval]]:
    for measure in MEASURES:
        yield measure, result.interval(arm, measure)
    if arm != result.against:
        for measure in _DIFFERENCES:
            yield f"{measure}_difference", result.difference(arm, measure)


def _dots(result: Directions) -> dots.Dots:
    arms, columns = list(result.means), list[dots.Column]()
    for measure in _DRAWN:
        found = [result.interval(arm, measure) for arm in arms]
        ends = [end for one in found for end in (0.0, one.mean, one.low, one.high) if np.isfinite(end)]
        margin = 0.06 * (max(ends) - min(ends)) or 1.0
        shown = [dots.Dot(one.mean, one.low, one.high) for one in found]
        columns.append(dots.Column(MEASURES[measure], shown, (min(ends) - margin, max(ends) + margin)))
    names = [f"{str(arm).partition('@')[0]} ({result.interval(arm, 'length').n})" for arm in arms]
    colours = [plots.colour(list(KINDS).index(arm.kind)) for arm in arms]
    return dots.Dots(f"{result.env}, {result.trained} trains", names, colours, columns)


def _caption(results: Sequence[Directions]) -> str:
    trained = {str(result.trained) for result in results}
    return _CAPTION.format(arm=trained.pop() if len(trained) == 1 else "the training arm")


def _text(interval: Interval) -> str:
    width = "" if interval.half_width is None else f" ± {interval.half_width:.2g}"
    return f"{interval.mean:.3g}{width}"
