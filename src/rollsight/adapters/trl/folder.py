"""The run folder of a trainer: made when training starts, continued when it resumes from a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list

from rollsight import runs
from rollsight.errors import RollsightError

Result = TypeVar("Result")

# What must be the same where a run is continued, by its name in `run.json`.
_IDENTITY = {
    "algo": "algorithm",
    "model": "model",
    "peft": "use of an adapter",
    "rewards": "reward functions",
}


def check_metadata(given: Mapping[str, Any], taken: Mapping[str, Any]) -> None:
    """`RollsightError` where an entry given for `run.json` has a name that is written already."""
    if both := sorted(taken.keys() & given.keys()):
        raise RollsightError(f"metadata: the name {both[0]!r} is written by attach itself; choose another.")


def open_writer(
    folder: Path, described: Mapping[str, Any], *, after: int | None, step: int, overwrite: bool
) -> runs.RunWriter:
    """The folder's writer. after: the round that training goes on after, at this step of the trainer; None: a new run.

    A run that is there is continued after that round, and its later rounds, which training makes anew, are replaced.
    Where it ends before that round, the rounds between stay missing, with a warning.

    Raises `RollsightError` where the folder cannot be written to, or is of another training.
    """
    if after is None or not runs.is_run(folder):
        return runs.create(folder, described, overwrite=overwrite)
    there = runs.open(folder)
    _check_identity(folder, there.metadata, described)
    last = max(there.rounds, default=0)
    missing = list(range(last + 1, after + 1))
    if missing:
        warnings.warn(
            f"the run {folder} ends with round {last} and training goes on after round {after}: the rounds between are "
            "missing in it",
            stacklevel=2,
        )
    return runs.resume(folder, after=min(after, last), step=step, missing_rounds=missing)


def in_main_process(trainer: Any, call: Callable[[], Result]) -> Result | None:
    """The call's result in the trainer's main process, None in others; what it raises there ends all of them."""
    result: Result | None = None
    failure: Exception | None = None
    if trainer.accelerator.is_main_process:
        try:
            result = call()
        except Exception as error:
            failure = error
    told = broadcast_object_list([None if failure is None else str(failure)])[0]
    if failure is not None:
        raise failure
    if told is not None:
        raise RollsightError(told)
    return result


def _check_identity(folder: Path, then: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    now = runs.jsonable(described)
    for name, called in _IDENTITY.items():
        if name in then and name in now and not _alike(name, then[name], now[name]):
            raise RollsightError(
                f"the run {folder} is of another training (its {called}: {_shown(then[name])}, this trainer's: "
                f"{_shown(now[name])}) and is not continued by this one: choose another place for the run"
            )
    if "algo" not in then:
        raise RollsightError(f"the run {folder} is not of a TRL trainer: choose another place for the run")


def _alike(name: str, then: Any, now: Any) -> bool:
    if name != "model" or then == now:
        return bool(then == now)
    # Folders move, and a model may be loaded from the checkpoint that training resumes from.
    place = Path(str(now)).name
    return place == Path(str(then)).name or place.startswith("checkpoint-")


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
