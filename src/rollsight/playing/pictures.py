"""What the agent saw: the picture of a record, and an episode as a film strip.

Where the observation says all (classic control, toy text, MiniGrid, Atari's frames) it is drawn itself, which needs
nothing but the records. Elsewhere the episode is played again from its start with its own actions, and what is seen on
the way is compared with what the run stores.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from rollsight.arrays import Array
from rollsight.environments.drawing import Drawing, rendered
from rollsight.environments.episode_start import restart
from rollsight.environments.states import DRIFTING, EXACT, check_reproduced
from rollsight.environments.trained import TrainedEnvironment, trained_environment
from rollsight.errors import RollsightError
from rollsight.runs import Run
from rollsight.runs.episode_rows import episode_rows, records


@dataclass(frozen=True, eq=False)
class Picture:
    """image: (H, W, 3) bytes of red, green, blue.
    source: "observation" where it was drawn from the record alone, "replay" where its episode was played again."""

    image: Array
    source: Literal["observation", "replay"]


@dataclass(frozen=True, eq=False)
class Strip:
    """Pictures of an episode.

    rows: round and row of each record, in order.
    frames: a PNG of each.
    source: as of `Picture`.
    """

    rows: Sequence[tuple[int, int]]
    frames: Sequence[bytes]
    source: Literal["observation", "replay"]


class Pictures:
    """Draws records of a run, without a display. For use in one thread."""

    def __init__(self, run: Run) -> None:
        # pygame looks for a screen, and complains where there is none; it takes SIGTERM from the process that draws.
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")
        self._run = run
        self._name = str(run.metadata.get("env") or "")
        self._drawing = Drawing(run.metadata)
        self._trained: dict[int, TrainedEnvironment] = {}

    def of_record(self, round: int, row: int) -> Picture:
        """The picture of a record.

        Raises:
            RollsightError: there is none, in one sentence with the reason; show the observation's numbers instead.
        """
        drawn = self.observed(round, row)
        if drawn is not None:
            return Picture(drawn, "observation")
        rows = episode_rows(self._run, round, row)
        *_, last = self._replayed(rows[: rows.index((round, row)) + 1], only_last=True)
        return Picture(last, "replay")

    def of_episode(self, round: int, row: int, height: int = 96) -> Strip:
        """The episode of a record, as far as the run stores it, in pictures of `height` pixels.

        Raises:
            RollsightError: as `of_record`.
        """
        rows = episode_rows(self._run, round, row)
        drawn = [self.observed(*one) for one in rows]
        if all(image is not None for image in drawn):
            return Strip(rows, [as_png(image, height) for image in drawn if image is not None], "observation")
        return Strip(rows, [as_png(image, height) for image in self._replayed(rows)], "replay")

    def observed(self, round: int, row: int) -> Array | None:
        """The observation as a picture (H, W, 3); None where it does not say enough, or is not stored."""
        observed = self._observation(round, row)
        return None if observed is None else self._drawing.of(observed)

    def _observation(self, round: int, row: int) -> Array | None:
        """(D,) as it is stored; None where it is not."""
        table = records(self._run, round)
        if not 0 <= row < len(table):
            raise RollsightError(f"round {round} of {self._run.path} has {len(table)} records and none of number {row}")
        stored = table["obs"][row].as_py() if "obs" in table.column_names else None
        return None if stored is None else np.asarray(stored).reshape(-1)

    def _replayed(self, rows: Sequence[tuple[int, int]], only_last: bool = False) -> Iterator[Array]:
        """Pictures of an episode's steps, in order, from its first."""
        round, row = rows[0]
        table = records(self._run, round)
        names = set(table.column_names)
        start = table["episode_start"][row].as_py() if "episode_start" in names else None
        if start is None or table["episode_step"][row].as_py() != 0:
            raise RollsightError(
                f"{self._name or 'the environment'} cannot be drawn: its observations do not say all of its state, and "
                "the run does not store how this episode started"
            )
        trained = self._environment(rows[-1][0])
        env = trained.alone("rgb_array")
        try:
            obs = restart(env, str(start))
            for place, (number, at) in enumerate(rows):
                stored = self._observation(number, at)
                if stored is not None:
                    seen = self._flat(obs, stored.size)
                    check_reproduced(env, seen, stored, place, DRIFTING if trained.statistics else EXACT)
                if not only_last or place + 1 == len(rows):
                    yield rendered(env, self._name)
                obs, *_ = env.step(_executable(env.action_space, records(self._run, number)["action"][at].as_py()))
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, RollsightError):
                raise
            raise RollsightError(
                f"{self._name} cannot be drawn: its episode cannot be played again ({error})"
            ) from error
        finally:
            env.close()

    def _environment(self, round: int) -> TrainedEnvironment:
        if round not in self._trained:
            self._trained[round] = trained_environment(self._run, "its records cannot be drawn", round=round)
        return self._trained[round]

    def _flat(self, obs: Any, size: int) -> Array:
        """(D,) an observation as the run stores it."""
        seen = np.asarray(obs)
        if self._drawing.channels_first and seen.ndim == 3 and seen.size == size:
            seen = seen.transpose(2, 0, 1)
        return seen.reshape(-1)


def as_png(image: Array, height: int | None = None) -> bytes:
    """An image (H, W, 3) as a PNG; made smaller where it is higher than `height`."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image, np.uint8))
    if height is not None and picture.height > height:
        picture = picture.resize((max(1, picture.width * height // picture.height), height), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _executable(space: gym.Space[Any], action: Any) -> Any:
    """A stored action as the environment takes it: hosts clip to the space."""
    if isinstance(space, gym.spaces.Box):
        return np.clip(np.asarray(action, space.dtype).reshape(space.shape), space.low, space.high)
    return int(action) if np.ndim(action) == 0 else np.asarray(action)
