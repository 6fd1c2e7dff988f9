"""The story in one picture: where the influence came from, where the cart goes, and what training without it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rollsight import runs
from rollsight.analysis.culprits import of_query, score_rounds
from rollsight.analysis.culprits.groups import columns, flat
from rollsight.analysis.drawing import new_figure, save_figure
from rollsight.arrays import Floats
from rollsight.studies.demo.cart import ENVS, FAULTY, KINDS, behaviour, folder

_COLOURS = {"all records": "#c0392b", "healthy": "#2c7fb8", "without": "#27864b", "random": "#8a8a8a"}
_WORDS = {"all records": "with the fault", "without": "without its records", "random": "without as many random ones"}


def shares(run: runs.Run) -> Floats:
    """(rounds, environments): each environment's share of a round's positive influence on the bad behaviour."""
    (influences,) = score_rounds(run, [of_query(run, behaviour(run))])
    place = columns(run, influences, ["round", "env"])
    round, env = (np.asarray(place[name].to_numpy()) for name in ("round", "env"))
    positive = np.maximum(flat(influences)[0], 0)
    sums = np.zeros((len(influences), ENVS))
    np.add.at(sums, (np.searchsorted([one.round for one in influences], round), env), positive)
    found: Floats = sums / np.maximum(sums.sum(1, keepdims=True), 1e-30)
    return found


def draw(out: Path, seeds: int, path: Path) -> None:
    """Draw it from the run folders of `seeds` seeds; the first two panels are of seed 0."""
    figure = new_figure(11, 3.6)
    where, position, learning = figure.subplots(1, 3, width_ratios=(1, 1.1, 1.1))
    faulty = runs.open(folder(out, "all records", 0))
    found = shares(faulty)
    image = where.imshow(
        found.T, aspect="auto", cmap="magma_r", vmin=0, extent=(0.5, len(found) + 0.5, ENVS - 0.5, -0.5)
    )
    where.set(xlabel="round", ylabel="environment", yticks=range(ENVS), title="who taught it to push left")
    figure.colorbar(image, ax=where, format=lambda share, _: f"{share:.0%}")
    for kind in ("all records", "without"):
        for step, place in _positions(runs.open(folder(out, kind, 0))):
            position.plot(step, place, color=_COLOURS[kind], lw=0.7, alpha=0.6)
        position.plot([], [], color=_COLOURS[kind], label=_WORDS[kind])
    position.axhline(-2.4, color="black", lw=0.8, ls=":")
    position.set(xlabel="step of the episode", ylabel="position, left is below", title="where the cart goes")
    _legend(position)
    for kind in KINDS:
        curves = [_curve(runs.open(folder(out, kind, seed))) for seed in range(seeds)]
        for curve in curves if seeds > 1 else []:
            learning.plot(curve, color=_COLOURS[kind], lw=0.5, alpha=0.4)
        learning.plot(np.mean(curves, 0), color=_COLOURS[kind], lw=2, label=_WORDS.get(kind, kind))
    learning.set(
        xlabel="round", ylabel="return where nothing is wrong", title="trained with and without", ylim=(0, 510)
    )
    _legend(learning)
    save_figure(figure, path)


def _legend(axes: Any) -> None:
    """Below the panel, so that it hides no curve."""
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, frameon=False)


def _curve(run: runs.Run) -> list[float]:
    rows: list[Any] = run.sql("select avg(return) from evaluations group by round order by round").fetchall()
    return [row[0] for row in rows]


def _positions(run: runs.Run) -> list[tuple[list[int], list[float]]]:
    """Steps and positions of the carts in the last rounds' episodes, in the sound environments."""
    rows = run.sql(
        "select list(episode_step order by episode_step), list(obs[1] order by episode_step) from records "
        f"where env <> {FAULTY} and round > {run.rounds[-1] - 2} group by env, episode"
    ).fetchall()
    return [(list(steps), list(places)) for steps, places in rows]
