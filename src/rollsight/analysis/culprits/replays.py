"""The counterfactual check: rounds replayed without the culprits, and without as many random records.

Drop mode: repack (minibatches are formed from the records that are left). Counterfactual: replay (the buffer, its
advantages and its returns stay as they were).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from rollsight.analysis.culprits.frozen import FrozenRound, check_has_rounds
from rollsight.analysis.culprits.scores import AnyBehaviour, Report
from rollsight.analysis.intervals import Interval, t_interval
from rollsight.arrays import Bools
from rollsight.errors import RollsightError
from rollsight.runs import Run
from rollsight.streams import Purpose, stream
from rollsight.update import DropMode

Outcome = Literal["confirmed", "not confirmed", "opposite"]


@dataclass(frozen=True)
class CheckedRound:
    """One round's replays. Log-probabilities are means over the behaviour's pairs, in nats.

    round: its number.
    left_out: how many records; the same number of culprits and of random ones.
    before: log pi before the update.
    trained: after the update as it was.
    without_culprits: after the update without them.
    without_random: after each update without as many random records.
    """

    round: int
    left_out: int
    before: float
    trained: float
    without_culprits: float
    without_random: tuple[float, ...]

    @property
    def difference(self) -> float:
        """Log pi without the culprits less the mean of those without random records."""
        return self.without_culprits - float(np.mean(self.without_random))


@dataclass(frozen=True)
class Check:
    """Whether the culprits taught the behaviour.

    outcome: confirmed where the interval of the difference lies below 0, opposite where it lies above.
    difference: mean over the rounds of log pi without the culprits less log pi without as many random records, in
        nats, with Student's 95 % interval over rounds.
    verdict: in one sentence.
    left_out: what the culprits are, in words.
    rounds: each round's replays.
    semantic: how records left, always "repack".
    counterfactual: always "replay".
    """

    outcome: Outcome
    difference: Interval
    verdict: str
    left_out: str
    rounds: Sequence[CheckedRound] = field(repr=False)
    semantic: DropMode = "repack"
    counterfactual: Literal["replay"] = "replay"


def check(
    run: Run,
    behaviour: AnyBehaviour,
    culprits: Mapping[int, Bools],
    *,
    draws: int = 3,
    seed: int = 0,
    left_out: str = "the culprits",
    report: Report | None = None,
) -> Check:
    """Replay each round as it was, without its culprits, and without as many random records.

    culprits: frozen round -> (N,) which of its records. draws: of random records in each round; more make the
    comparison less noisy, at a replay each.

    Raises:
        RollsightError: no round has culprits and other records too, or a round cannot be loaded.
    """
    check_has_rounds(run)
    rounds = []
    each = 2 + draws
    for done, (number, chosen) in enumerate(sorted(culprits.items())):
        if report is not None:
            report(done * each, len(culprits) * each)
        checked = _replayed(behaviour.rounds.open(number), behaviour, chosen, draws, seed)
        if checked is not None:
            rounds.append(checked)
    if report is not None:
        report(len(culprits) * each, len(culprits) * each)
    if not rounds:
        raise RollsightError(
            "no round has records to leave out and others to train on: leave out single records, or a smaller group"
        )
    difference = t_interval([one.difference for one in rounds])
    outcome = _outcome(difference)
    return Check(outcome, difference, _sentence(outcome, difference, left_out), left_out, rounds)


def _replayed(
    frozen: FrozenRound, behaviour: AnyBehaviour, chosen: Bools, draws: int, seed: int
) -> CheckedRound | None:
    """None where nothing or everything would be left out."""
    weights = frozen.weights
    trained = np.flatnonzero(weights.cpu().numpy() > 0)
    gone = np.flatnonzero(chosen & (weights.cpu().numpy() > 0))
    if not 0 < len(gone) < len(trained):
        return None

    def after(left_out: np.ndarray[tuple[int], np.dtype[np.int64]] | None) -> float:
        without = None
        if left_out is not None:
            without = weights.clone()
            without[torch.from_numpy(left_out)] = 0
        return behaviour.log_prob(frozen.after(without), frozen.records)

    random = []
    for draw in range(draws):
        rng = stream(seed, frozen.number, Purpose.AS_MANY_AS_CULPRITS, draw)
        random.append(after(rng.choice(trained, len(gone), replace=False)))
    before = behaviour.log_prob(frozen.before(), frozen.records)
    return CheckedRound(frozen.number, len(gone), before, after(None), after(gone), tuple(random))


def _outcome(difference: Interval) -> Outcome:
    if difference.high < 0:
        return "confirmed"
    return "opposite" if difference.low > 0 else "not confirmed"


def _sentence(outcome: Outcome, difference: Interval, left_out: str) -> str:
    word = "lower" if difference.value < 0 else "higher"
    sentence = (
        f"{outcome}: without {left_out}, the behaviour's mean log-probability after a round is "
        f"{abs(difference.value):.3g} {word} than without as many random records"
    )
    if difference.n < 2:
        return f"{sentence}; one round gives no interval"
    return (
        f"{sentence} (difference {difference.value:.3g}, 95 % interval {difference.low:.3g} to {difference.high:.3g} "
        f"over {difference.n} rounds)"
    )
