"""The influence of every record of every frozen round on behaviours; each finished round is kept."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from rollsight.analysis.culprits.frozen import FrozenRound, FrozenRounds, check_has_rounds
from rollsight.arrays import Floats
from rollsight.errors import RollsightError
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.runs import Run, results_folder, whole_file

Report = Callable[[int, int], None]  # steps done, steps in all


class AnyBehaviour(Protocol):
    """What a behaviour of any kind of run is asked for."""

    @property
    def name(self) -> str:
        """In words."""
        ...

    @property
    def key(self) -> str:
        """Another one for other pairs; results are kept under it."""
        ...

    @property
    def places(self) -> Sequence[tuple[int, ...]]:
        """Of each pair that is a record: round, and what names a record in it."""
        ...

    @property
    def found(self) -> int:
        """How many pairs show the behaviour."""
        ...

    @property
    def rounds(self) -> FrozenRounds:
        """Those that it can be measured in."""
        ...

    def __len__(self) -> int:
        """How many pairs its probability is the mean of."""
        ...

    def log_prob(self, policy: Policy, records: Records) -> float:
        """Of the pairs, their mean under a policy; records: any of the run, for their shape."""
        ...


@dataclass(frozen=True, eq=False)
class RoundInfluence:
    """What a round taught of one behaviour, to first order.

    round: its number.
    log_prob: mean log-probability of the pairs before the round's update.
    values: (N,) influence of each record times its weight in the update, 0 where it was dropped or invalid; in nats per
        unit of the record's weight.
    weights: (N,) in the update: 0 for records that taught nothing.
    """

    round: int
    log_prob: float
    values: Floats
    weights: Floats


def score_rounds(
    run: Run, behaviours: Sequence[AnyBehaviour], report: Report | None = None
) -> list[list[RoundInfluence]]:
    """For each behaviour the influence of the records of every frozen round, ascending.

    A round is loaded once for all behaviours. Finished rounds are kept next to the run, and are not scored
    again by another call.

    Raises:
        RollsightError: there are no frozen rounds, or one cannot be loaded.
    """
    check_has_rounds(run)
    found: list[list[RoundInfluence]] = [[] for _ in behaviours]
    rounds = behaviours[0].rounds
    numbers = rounds.numbers
    for done, number in enumerate(numbers):
        if report is not None:
            report(done, len(numbers))
        paths = [folder_of(run, one) / f"round-{number:06d}.npz" for one in behaviours]
        kept = [_read(path, number) for path in paths]
        missing = [index for index, one in enumerate(kept) if one is None]
        if missing:
            scored = _score(rounds.open(number), [behaviours[index] for index in missing])
            for index, taught in zip(missing, scored, strict=True):
                _write(paths[index], taught)
                kept[index] = taught
        for mine, whole in zip(found, kept, strict=True):
            assert whole is not None
            mine.append(whole)
    if report is not None:
        report(len(numbers), len(numbers))
    return found


def folder_of(run: Run, behaviour: AnyBehaviour) -> Path:
    """Where the results on a behaviour are kept."""
    return results_folder(run.path, "culprits", behaviour.key)


def _score(frozen: FrozenRound, behaviours: Sequence[AnyBehaviour]) -> list[RoundInfluence]:
    try:
        scores = frozen.scores(behaviours)
    except RollsightError as error:
        raise RollsightError(f"round {frozen.number} cannot be scored: {error}") from error
    weights, policy = frozen.weights, frozen.before()
    mine = weights.cpu().numpy().astype(np.float64)
    return [
        RoundInfluence(frozen.number, one.log_prob(policy, frozen.records), _weighed(values, weights), mine)
        for one, values in zip(behaviours, scores, strict=True)
    ]


def _weighed(values: Tensor, weights: Tensor) -> Floats:
    """Rounded as they are kept, so that an interrupted call gives the same."""
    weighed: Floats = (values * weights.to(values)).cpu().numpy().astype(np.float32).astype(np.float64)
    return weighed


def _write(path: Path, one: RoundInfluence) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, log_prob=one.log_prob, values=one.values.astype(np.float32), weights=one.weights)


def _read(path: Path, round: int) -> RoundInfluence | None:
    """What is kept of a round; None where there is nothing, or where it is damaged."""
    try:
        with np.load(path) as kept:
            values, weights = (np.asarray(kept[name], np.float64) for name in ("values", "weights"))
            return RoundInfluence(round, float(kept["log_prob"]), values, weights)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
