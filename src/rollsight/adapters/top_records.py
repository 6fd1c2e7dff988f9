"""The records of a round that helped and hurt most, as a small table for experiment trackers."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from contextlib import closing
from importlib.util import find_spec
from typing import Any

import numpy as np

from rollsight.arrays import Array, Ints
from rollsight.escaping import visible
from rollsight.streams import Purpose
from rollsight.trackers import Table, default_variable

COUNT = 5  # from each end
_LONG = 1000  # characters of a text
_HEIGHT = 120  # pixels of a picture, about
_BEFORE = ("env", "step", "episode", "episode_step", "group", "prompt", "completion", "length", "action")
_AFTER = ("reward", "advantage", "kept", "reason")


def top_records(columns: Mapping[str, Any], metadata: Mapping[str, Any]) -> Table | None:
    """The records of the highest and of the lowest scores; None where nothing was scored.

    columns: of the round, as they go to the run folder. metadata: as `run.json` has it.
    """
    name = next((name for name in columns if name.startswith("score_")), None)
    if name is None or len(scores := np.asarray(columns[name], np.float64)) == 0 or scores.ndim > 1:
        return None
    rows = np.flatnonzero(np.asarray(columns["valid"]) & np.isfinite(scores))
    order = rows[np.argsort(-scores[rows], kind="stable")]
    top = order[: min(COUNT, (len(order) + 1) // 2)]
    bottom = order[len(top) :][: -COUNT - 1 : -1]
    shown = np.concatenate([top, bottom])
    if len(shown) == 0:
        return None
    table: dict[str, list[Any]] = {
        "round": [_plain(columns["round"][i]) for i in shown],
        "rank": [*range(1, len(top) + 1), *(-i for i in range(1, len(bottom) + 1))],
        "record": shown.tolist(),
    }
    table |= {one: [_plain(columns[one][i]) for i in shown] for one in (*_BEFORE, name, *_AFTER) if one in columns}
    return Table(table, _pictures(columns, shown, metadata))


def _pictures(columns: Mapping[str, Any], shown: Ints, metadata: Mapping[str, Any]) -> list[Array]:
    """What the agent saw in each of these records; empty where an observation does not show it."""
    seen = [columns["obs"][i] for i in shown] if "obs" in columns else [None]
    pygame = sys.modules.get("pygame")
    if any(one is None for one in seen) or find_spec("PIL") is None:  # trackers make files of them with it
        return []
    if pygame is not None and pygame.get_init():  # by the program itself: closing ours would close its window
        return []
    from rollsight.adapters.sb3.streams import streams_of_their_own
    from rollsight.environments.drawing import Drawing

    drawn: list[Array] = []
    round = int(columns["round"][0])
    no_screen = default_variable("SDL_VIDEODRIVER", "dummy")  # pygame looks for one, and complains where there is none
    with streams_of_their_own(round, Purpose.RECORDED_SAMPLE), no_screen, closing(Drawing(metadata)) as drawing:
        for one in seen:
            if (picture := drawing.of(np.asarray(one).reshape(-1))) is None:
                return []
            drawn.append(_shrunk(picture))
    return drawn


def _shrunk(image: Array) -> Array:
    """An image (H, W, 3) of bytes, made smaller by a whole factor."""
    from PIL import Image

    small = Image.fromarray(np.ascontiguousarray(image)).reduce(math.ceil(image.shape[0] / _HEIGHT))
    return np.asarray(small)


def _plain(value: Any) -> Any:
    """A text, a number, a boolean or None."""
    if hasattr(value, "as_py"):
        value = value.as_py()
    elif isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return json.dumps([round(one, 4) if isinstance(one, float) else one for one in value])
    if isinstance(value, str):
        return visible(value if len(value) <= _LONG else value[:_LONG] + "…", lines=True)
    return value
