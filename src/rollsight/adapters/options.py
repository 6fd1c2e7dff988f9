"""What an adapter's plain values mean, checked before the first rollout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import Tensor

from rollsight import selection, targets
from rollsight.errors import OptionError, RollsightError
from rollsight.scoring import Scores
from rollsight.scoring.score import Backend
from rollsight.selection import DropNegative, Rule, Selection
from rollsight.snapshot.language import SMALL, bytes_of

Known = Mapping[str, Callable[[], targets.Target]]

_TARGETS: Known = {"return": targets.Return, "objective": targets.Objective}


def targets_of(
    given: str | targets.Target | Sequence[str | targets.Target], known: Known = _TARGETS
) -> list[targets.Target]:
    """Target objects from names (the `known` ones), objects, or a list of both; their names must differ."""
    many: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
    for one in many:
        if not (hasattr(one, "measured_on") if not isinstance(one, str) else one in known):
            names = " or ".join(map(repr, known))
            raise RollsightError(f"target={one!r} is unknown; give {names}, or an object such as targets.Action(...).")
    result = [known[one]() if isinstance(one, str) else targets.checked(one) for one in many]
    if not result or len({t.name for t in result}) < len(result):
        raise RollsightError(
            f"target={[t.name for t in result]} needs at least one target, each with a name of its own (name=)."
        )
    for one in result:
        if one.each:
            raise RollsightError(f"target {one.name!r} has each=True, many scores per record; give each=False.")
    return result


_UNITS = {"record": "record", "episode": "episode"}


def rule_of(
    drop: float | None,
    given: str | Rule | None,
    unit: str,
    *,
    seed: int = 0,
    floor: int = 0,
    units: Mapping[str, str] = _UNITS,
) -> Rule | None:
    """The selection rule that `drop` or `selection` stand for, keeping at least `floor` records; None drops nothing.

    units: what the host calls its units -> the identity of the records that they are.
    """
    if drop is not None and given is not None:
        raise RollsightError(f"drop={drop} and selection={given!r} are two rules for the same records; give one.")
    if unit not in units:
        raise RollsightError(f"unit={unit!r} is unknown; give {' or '.join(map(repr, units))}.")
    if drop is not None:
        number = isinstance(drop, (int, float, np.number)) and not isinstance(drop, bool)
        if not (number and 0 <= drop <= 1):
            raise OptionError(
                "{drop} is not a fraction: give a number between 0 and 1, 0.5 for half of the negative records",
                drop=drop,
            )
        return DropNegative(float(drop), unit=units[unit], min_keep=floor)
    if isinstance(given, str):
        return selection.from_text(given, seed=seed, unit=units[unit], min_keep=floor)
    if given is not None and not callable(given):
        raise RollsightError(f"selection={given!r} is not a rule; give 'negative:0.5', 'random:0.5', or a rule object.")
    return None if given is None else selection.with_floor(given, floor)


def interval_of(snapshots: str) -> int:
    """Rounds from one snapshot to the next, 0 for none."""
    kind, _, number = str(snapshots).partition(":")
    if snapshots in ("all", "none"):
        return int(snapshots == "all")
    if kind == "every" and number.isdecimal() and int(number) > 0:
        return int(number)
    raise RollsightError(f"snapshots={snapshots!r} is unknown; write 'every:10', 'all' or 'none'.")


def frozen_interval_of(snapshots: str, parameters: Iterable[Tensor]) -> int:
    """The same for rounds of language models; "auto": all where one, with these trained parameters, is small."""
    if snapshots == "auto":
        return int(bytes_of(parameters) <= SMALL)
    try:
        return interval_of(snapshots)
    except RollsightError as error:
        raise OptionError("{snapshots} is unknown: give auto, all, every:K or none", snapshots=snapshots) from error


def check_every(every: int) -> int:
    """A positive number of rounds."""
    if isinstance(every, bool) or not isinstance(every, (int, np.integer)) or every < 1:
        raise OptionError("{every} is not a number of rounds: give 1 to score each, k to score every k-th", every=every)
    return int(every)


def check_backend(backend: str) -> None:
    """One of `score_records`' own."""
    if backend not in get_args(Backend):
        raise OptionError(f"{{backend}} is unknown; give {', '.join(get_args(Backend))}.", backend=backend)


def check_weights(selection: Selection, scores: Scores, called: str) -> None:
    """A weight of 0 or 1 for each of the scores (N,). called: what the host calls its records."""
    if selection.weights.shape != scores.values.shape:
        raise RollsightError(
            f"The selection has weights of shape {tuple(selection.weights.shape)} for {len(scores)} {called}; give one "
            "each."
        )
    if not bool(((selection.weights == 0) | (selection.weights == 1)).all()):
        raise RollsightError(
            f"{called.capitalize()} are kept or left out, not weighed; give a rule whose weights are 0 or 1."
        )


def run_folder(run: Any) -> Path | None:
    """Where the run is to be written; None where it is not."""
    if run is None:
        return None
    text = os.fspath(run) if isinstance(run, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text.strip():
        raise OptionError("{run} is not the path of a folder: give a text or a Path such as 'runs/lander'", run=run)
    path = Path(text)
    for part in (path, *path.parents):
        if part.is_file():
            raise OptionError(f"{{run}} is not the path of a folder ({part} is a file): choose another place", run=text)
    return path
