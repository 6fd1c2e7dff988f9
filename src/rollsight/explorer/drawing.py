"""Pictures of an episode for a page: drawn from its observations, or, on request, by playing it again."""

from __future__ import annotations

import base64
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rollsight.errors import RollsightError
from rollsight.runs import Run

FRAMES = 120  # pictures of an episode
_HEIGHT = 160  # pixels of a frame
_drawing = threading.Lock()  # pygame is for one thread


@dataclass(frozen=True, eq=False)
class Drawn:
    """Attributes:
    picture: PNG of the record itself.
    frames: PNGs of steps of its episode, number of the record -> picture, in order.
    replayed: whether the episode was played again.
    """

    picture: bytes
    frames: Mapping[int, bytes]
    replayed: bool


def drawn(run: Run, round: int, record: int, episode: Sequence[int], *, replay: bool) -> Drawn:
    """A record, and its episode in at most `FRAMES` pictures, evenly spread, its own among them.

    Args:
        episode: numbers of the records of the round that belong to its episode, in order.
        replay: whether the episode may be played again.

    Raises:
        RollsightError: there is no picture, in one sentence with the reason.
    """
    from rollsight.playing.pictures import Pictures, as_png

    with _drawing:
        pictures = Pictures(run)
        if not replay:
            seen = {one: pictures.observed(round, one) for one in spread(episode, record)}
            images = {one: image for one, image in seen.items() if image is not None}
            if record not in images:
                raise RollsightError(
                    "the observation does not say all that can be seen, so a picture needs the episode to be played "
                    "again: this runs the environment, for as long as the episode is"
                )
            return Drawn(as_png(images[record]), {one: as_png(image, _HEIGHT) for one, image in images.items()}, False)
        strip = pictures.of_episode(round, record, height=2 * _HEIGHT)
    found = {row: frame for (number, row), frame in zip(strip.rows, strip.frames, strict=True) if number == round}
    shown = spread([one for one in episode if one in found], record)
    return Drawn(found[record], {one: found[one] for one in shown}, strip.source == "replay")


def spread(episode: Sequence[int], record: int) -> list[int]:
    """At most `FRAMES` of an episode's records, with both ends and this one."""
    if len(episode) <= FRAMES:
        return list(episode)
    places = np.linspace(0, len(episode) - 1, FRAMES - 1).round().astype(int)
    return [episode[place] for place in sorted({*places.tolist(), list(episode).index(record)})]


def as_source(png: bytes) -> str:
    """A PNG as the source of an image on a page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
