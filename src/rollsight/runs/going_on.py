"""A recording that goes on where an interrupted one ended."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollsight.errors import OptionError, RollsightError
from rollsight.runs.metadata import jsonable
from rollsight.runs.reader import open_run
from rollsight.runs.writer import RunWriter, resume


@dataclass(frozen=True, eq=False)
class Resumed:
    """Attributes:
    writer: writes the run folder; holds its lock.
    timesteps: of all rounds that are kept.
    first_episode: the first number that no episode of the run has.
    """

    writer: RunWriter
    timesteps: int
    first_episode: int


def resumed(path: Path, after: int | None, given: Mapping[str, Any]) -> Resumed:
    """The run after its last complete round, or after round `after`, whose later rounds are replaced.

    given: what `run.json` would say of the loop that goes on; what differs is a warning and kept in `continued`.

    Raises:
        RollsightError: the run is of another host or environment, ends before `after`, or is being written.
    """
    run = open_run(path)
    theirs, ours = run.metadata, jsonable(given)
    for name in ("host", "env"):
        if theirs.get(name) != ours.get(name):
            raise OptionError(
                f"the run {path} is another one ({name} {theirs.get(name)!r}, this one's is {ours.get(name)!r}): "
                "choose another place, or replace it with {overwrite}",
                overwrite=True,
            )
    changed = {
        name: {"was": theirs[name], "is": value}
        for name, value in ours.items()
        if name in theirs and theirs[name] != value
    }
    if changed:
        warnings.warn(f"the run {path} goes on with another {', '.join(changed)} than it began with", stacklevel=3)
    writer = resume(path, after, changed=changed)
    try:
        timesteps, episode = _done(path)
    except RollsightError as error:  # what is lost or damaged does not keep a loop from going on
        warnings.warn(f"episodes and time steps of {path} are counted from 0 again: {error}", stacklevel=3)
        timesteps, episode = 0, -1
    return Resumed(writer, timesteps, episode + 1)


def _done(path: Path) -> tuple[int, int]:
    """Time steps so far, and the highest number of an episode, -1 where there are none."""
    run = open_run(path)
    if not run.rounds:
        return 0, -1
    last = run.rows("rounds", ("timesteps",), run.rounds[-1:]).to_pylist()[0]
    episodes = [-1]
    if "episode" in run.records(run.rounds[-1]).column_names:
        episodes += [row[0] for row in run.sql("select max(episode) from records").fetchall() if row[0] is not None]
    return int(last.get("timesteps") or 0), int(max(episodes))
