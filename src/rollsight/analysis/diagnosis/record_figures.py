"""Pictures of the records themselves: arrows on FrozenLake's grid, MiniGrid's view, rendered frames elsewhere."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.toy_text import FrozenLakeEnv

from rollsight.analysis.diagnosis.figures import WRONG
from rollsight.analysis.diagnosis.round import DiagnosedRecord, Diagnosis
from rollsight.analysis.diagnosis.round_data import RoundData
from rollsight.analysis.drawing import new_figure, save_figure
from rollsight.environments.states import Env, replay, set_state
from rollsight.errors import RollsightError
from rollsight.escaping import plain_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PER_ROW = 6
_ARROWS = {0: (-1, 0), 1: (0, 1), 2: (1, 0), 3: (0, -1)}  # FrozenLake's actions as (column, row) steps
_CELLS = {"F": "#eef4f8", "S": "#dcebdc", "H": "#33475b", "G": "#f5dd8c"}


def draw_records(diagnosis: Diagnosis, data: RoundData, folder: Path) -> Path:
    """Draw `records.png` of the bottom and top records into the folder.

    Raises `RollsightError` where the environment cannot be rendered.
    """
    env = data.environment.alone()
    if isinstance(env.unwrapped, FrozenLakeEnv):
        cells = [[cell.decode() for cell in row] for row in np.asarray(env.unwrapped.desc).tolist()]
        return save_figure(lake(diagnosis, cells), folder / "records.png")
    return save_figure(frames(diagnosis, data), folder / "records.png")


def lake(diagnosis: Diagnosis, cells: list[list[str]]) -> Figure:
    """An arrow for each (cell, action) among the bottom and the top records."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import TwoSlopeNorm

    figure = new_figure(10.4, 5.0)
    groups = {name: diagnosis.group(name) for name in ("bottom", "top")}
    largest = max((abs(r.score) for group in groups.values() for r in group), default=1.0) or 1.0
    colours = ScalarMappable(TwoSlopeNorm(0.0, -largest, largest), "RdBu")
    panels = figure.subplots(1, 2)
    for axes, (name, records) in zip(panels, groups.items(), strict=True):
        _draw_cells(axes, cells)
        by_pair: dict[tuple[int, int], list[DiagnosedRecord]] = defaultdict(list)
        for record in records:
            by_pair[record.obs, record.action].append(record)
        for (state, action), same in by_pair.items():
            row, column = divmod(state, len(cells[0]))
            right, down = _ARROWS[action]
            colour = colours.to_rgba(np.array([np.mean([r.score for r in same])]))[0]
            start, tip = (column + 0.1 * right, row + 0.1 * down), (column + 0.42 * right, row + 0.42 * down)
            # A dark edge, or pale arrows would vanish on the ice.
            arrow = {"arrowstyle": "simple,head_width=0.9,head_length=0.7,tail_width=0.35", "mutation_scale": 18}
            axes.annotate("", tip, start, arrowprops={**arrow, "facecolor": colour, "edgecolor": "0.25", "lw": 0.6})
            side = (column + 0.3 * right + 0.17 * down, row + 0.3 * down + 0.17 * right)
            axes.annotate(str(len(same)), side, ha="center", va="center", fontsize=7, color="0.3")
            signs = [r.mismatch for r in same if r.mismatch is not None]
            if signs and sum(signs) > len(signs) / 2:
                axes.plot(*tip, marker="x", color=WRONG, markersize=9, markeredgewidth=2.2)
        axes.set_title(f"{name}: {len(records)} records, {len(by_pair)} distinct (s, a)", fontsize=10)
    figure.colorbar(colours, ax=panels, label="mean score", shrink=0.8)
    figure.suptitle(
        f"{plain_label(diagnosis.env)}, round {diagnosis.round}: arrow = action, number = records, "
        r"cross = most signs of $\hat{A}$ wrong where $|\bar{A}| > 2$ s.e.",
        fontsize=10,
    )
    return figure


def _draw_cells(axes: Axes, cells: list[list[str]]) -> None:
    from matplotlib.patches import Rectangle

    for row, line in enumerate(cells):
        for column, cell in enumerate(line):
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=_CELLS[cell], edgecolor="white", lw=2))
            if cell != "F":
                corner = {"ha": "left", "va": "top", "fontsize": 9, "color": "0.45"}
                axes.annotate(cell, (column - 0.45, row - 0.45), **corner)  # type: ignore[arg-type]
    axes.set(xlim=(-0.5, len(cells[0]) - 0.5), ylim=(len(cells) - 0.5, -0.5), aspect="equal")
    axes.set_axis_off()


def frames(diagnosis: Diagnosis, data: RoundData) -> Figure:
    """The agent's view (MiniGrid) or a rendered frame of the most extreme distinct bottom and top records."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame looks for a screen, and complains where there is none
    try:
        env = data.environment.alone("rgb_array")
        env.reset(seed=0)
        rows = {name: _distinct(diagnosis.group(name)) for name in ("bottom", "top")}
        pictures = {r.row: _render(env, data, diagnosis, r) for records in rows.values() for r in records}
    except (gym.error.Error, NotImplementedError, AttributeError) as error:
        raise RollsightError(f"{diagnosis.env} cannot be rendered: {error}") from error
    height, width = next(iter(pictures.values())).shape[:2]
    figure = new_figure(1.9 * _PER_ROW, 2 * (1.9 * height / width + 0.75))
    panels = figure.subplots(2, _PER_ROW, squeeze=False)
    for line, (name, records) in zip(panels, rows.items(), strict=True):
        for axes in line:
            axes.set_axis_off()
        for axes, record in zip(line, records, strict=False):
            axes.imshow(pictures[record.row], interpolation="nearest" if height < 200 else None)
            colour = WRONG if record.mismatch else "black"
            axes.set_title(f"{name}: {_spell_action(env, record.action)}\n{_spell(record)}", fontsize=7, color=colour)
    figure.suptitle(
        f"{plain_label(diagnosis.env)}, round {diagnosis.round}: I = influence, "
        f"in pink where $\\hat{{A}}$ has the wrong sign",
        fontsize=10,
    )
    return figure


def _distinct(records: Sequence[DiagnosedRecord]) -> list[DiagnosedRecord]:
    """The most extreme with different (s, a), one from each episode first: neighbouring steps look alike."""
    pairs: set[tuple[str, str]] = set()
    episodes: dict[int, DiagnosedRecord] = {}
    others = []
    for record in records:
        pair = (str(record.obs), str(record.action))
        if pair not in pairs:
            pairs.add(pair)
            if episodes.setdefault(record.episode, record) is not record:
                others.append(record)
    return [*episodes.values(), *others][:_PER_ROW]


def _render(env: Env, data: RoundData, diagnosis: Diagnosis, record: DiagnosedRecord) -> Any:
    point = data.point(record.row)
    if diagnosis.method == "set":
        set_state(env, point)
    else:
        replay(env, point, data.see, data.tolerance)
    inner: Any = env.unwrapped
    picture = inner.get_pov_render(tile_size=24) if hasattr(inner, "get_pov_render") else env.render()
    if not isinstance(picture, np.ndarray):
        raise RollsightError(f"{diagnosis.env} cannot be rendered: its frame is a {type(picture).__name__}")
    return picture


def _spell_action(env: Env, action: Any) -> str:
    names = getattr(env.unwrapped, "actions", None)  # MiniGrid's enumeration
    if isinstance(action, int):
        return plain_label(names(action).name) if isinstance(names, type) else f"action {action}"
    return "[" + ", ".join(f"{part:.2g}" for part in np.atleast_1d(action)) + "]"


def _spell(record: DiagnosedRecord) -> str:
    error = f"\\pm{record.a_bar_error:.2g}"
    return f"I {record.score:.2g}\n$\\hat{{A}}$ {record.a_hat:.3g}   $\\bar{{A}}$ {record.a_bar:.3g}${error}$"
