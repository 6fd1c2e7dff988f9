"""MiniGrid's observations as pictures, with its own tiles."""

from __future__ import annotations

import math

import numpy as np

from rollsight.arrays import Array
from rollsight.errors import RollsightError

_TILE = 24  # pixels
_AGENT = 10  # MiniGrid's number of the agent's type, where the whole grid is observed


def draw_grid(observed: Array, channels_first: bool) -> Array | None:
    """The picture (H, W, 3) of a flat grid of types, colours and states; None where it is not one.

    The agent stands in the middle of the lowest row and looks up, as in MiniGrid's own views, unless it is in the grid
    itself.
    """
    try:
        from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT
        from minigrid.core.grid import Grid
    except ImportError as error:
        raise RollsightError(
            "MiniGrid's pictures need the package minigrid, which is not installed: pip install 'rollsight[envs]'"
        ) from error
    side = math.isqrt(observed.size // 3)
    if side * side * 3 != observed.size:
        return None
    cells = observed.reshape((3, side, side) if channels_first else (side, side, 3)).astype(np.int64)
    cells = cells.transpose(1, 2, 0) if channels_first else cells
    if cells.min() < 0 or any((cells[..., i] >= n).any() for i, n in ((0, len(IDX_TO_OBJECT)), (1, len(IDX_TO_COLOR)))):
        return None
    if (cells[..., 2] > 3).any():
        return None
    agents = np.argwhere(cells[..., 0] == _AGENT)
    position, direction = (side // 2, side - 1), 3
    if len(agents):
        position = (int(agents[0][0]), int(agents[0][1]))
        direction = int(cells[position][2])
    grid, visible = Grid.decode(cells)
    picture: Array = grid.render(_TILE, agent_pos=position, agent_dir=direction, highlight_mask=visible)
    return picture.astype(np.uint8)
