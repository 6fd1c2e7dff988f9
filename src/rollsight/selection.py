"""Rules that turn scores into weights. A rule says which units to leave out; it never recomputes advantages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from rollsight.errors import RollsightError
from rollsight.scoring.scores import Scores
from rollsight.streams import Purpose, stream


@dataclass(frozen=True, eq=False)
class Selection:
    """Weights for the records of one round.

    weights: (N,) floats, 0 for dropped and invalid records, 1 for kept ones.
    dropped: indices of the dropped records, in the order in which they were dropped.
    requested: number of units that the rule asked to drop.
    reached: number of units that were dropped.
    message: empty, or one sentence where fewer were dropped than asked.
    reason: why records were dropped, in a few words: one text for all of them, or a sequence of N texts, of which those
        of dropped records count. Empty where the rule does not say.

    Raises:
        RollsightError: `reason` is a sequence of another length than N.
    """

    weights: Tensor
    dropped: Tensor
    requested: int
    reached: int
    message: str = ""
    reason: str | Sequence[str | None] = ""

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str) and len(self.reason) != len(self.weights):
            raise RollsightError(
                f"Selection: `reason` has {len(self.reason)} texts for {len(self.weights)} records; give one for each "
                "record, or a single text for all that are dropped."
            )


class Rule(Protocol):
    """A selection rule: any callable from scores to a selection."""

    def __call__(self, scores: Scores) -> Selection:
        """Weights for the scored records."""
        ...


@dataclass(frozen=True)
class DropNegative:
    """Drop the fraction p of the *negative* valid units: exactly floor(p * n_negative), lowest first, ties by index.

    p: from 0 (drop nothing) to 1 (drop every negative unit).
    unit: "record", "episode" or another identity; a unit's score is the sum of its records'.
    min_keep: at least this many valid records stay; where that stops the rule early, the selection's message says so.
    """

    p: float
    unit: str = "record"
    min_keep: int = 0
    _reason: ClassVar[str] = "negative score"

    def __post_init__(self) -> None:
        _check_fraction(self.p, self.min_keep)

    def __call__(self, scores: Scores) -> Selection:
        totals, order = torch.sort(_unit_totals(scores, self.unit), stable=True)
        wanted = self._wanted(totals[totals < 0])
        return _drop(scores, self.unit, order, wanted, self.min_keep, self._reason)

    def _wanted(self, negative: Tensor) -> int:
        """How many of these negative totals, lowest first, to drop."""
        return math.floor(self.p * len(negative))


@dataclass(frozen=True)
class DropHarm(DropNegative):
    """The same with p as a fraction of the negative units' *sum*: drop the fewest that carry it, lowest first.

    How many that are is up to the scores: few where their distribution has a long tail, as gradients' products do.
    """

    _reason: ClassVar[str] = "most negative score"

    def _wanted(self, negative: Tensor) -> int:
        harm = negative.double().neg().cumsum(0)
        return int(torch.searchsorted(harm, self.p * harm[-1])) + 1 if self.p and len(harm) else 0


@dataclass(frozen=True)
class DropRandom:
    """Drop random valid units, in the number that the rule `like` would drop on the same scores: the control of every
    comparison.

    Its generator is keyed by (seed, round) and touches no other random stream.

    like: the rule whose number of units is dropped; of a rule of your own, whose number of records.
    seed: of the draw; another one drops other units.
    """

    like: Rule
    seed: int = 0

    def __call__(self, scores: Scores) -> Selection:
        like = self.like(scores)
        unit, number, min_keep = "record", len(like.dropped), 0
        if isinstance(self.like, DropNegative):
            unit, number, min_keep = self.like.unit, like.reached, self.like.min_keep
        units = len(_unit_totals(scores, unit))
        rounds = scores.ids.get("round")
        round = int(rounds[0]) if rounds is not None and len(rounds) else 0
        order = torch.from_numpy(stream(self.seed, round, Purpose.DROP_RANDOM).permutation(units))
        order = order.to(scores.values.device)
        mine = _drop(scores, unit, order, number, min_keep, "random control")
        return replace(mine, requested=like.requested, message=mine.message or like.message)


@dataclass(frozen=True)
class RankWeights:
    """Weigh every valid record by the rank of its score and drop none: weights in proportion to rank^-power, rank 1
    being the highest score, with a mean of 1. For hosts that can weigh, such as a replay buffer.

    The weights are those of rank-based prioritised replay (Schaul et al. 2016) with another order. Whatever gives the
    order, weights of one power have the same spread.

    power: 0 weighs all alike; higher concentrates the weights on the highest scores.
    """

    power: float = 0.6

    def __post_init__(self) -> None:
        if not self.power >= 0:
            raise RollsightError(f"RankWeights: power is {self.power}; give a number of at least 0.")

    def __call__(self, scores: Scores) -> Selection:
        order = torch.sort(_unit_totals(scores, "record"), descending=True, stable=True).indices
        ranked = torch.arange(1, len(order) + 1, device=order.device).double() ** -self.power
        of_valid = torch.empty_like(ranked)
        of_valid[order] = ranked / ranked.mean()
        weights = torch.zeros(len(scores), dtype=torch.float64, device=order.device)
        weights[scores.valid] = of_valid
        return Selection(weights, scores.valid.new_zeros(0, dtype=torch.long), 0, 0)


def from_text(text: str, *, seed: int = 0, unit: str = "record", min_keep: int = 0) -> DropNegative | DropRandom:
    """A rule from text: "negative:0.5" drops half of the negative units, "random:0.5" the same number at random."""
    kind, _, fraction = text.partition(":")
    try:
        rule = DropNegative(float(fraction), unit=unit, min_keep=min_keep)
    except ValueError as error:
        if isinstance(error, RollsightError):
            raise
        raise RollsightError(f"selection={text!r} has no fraction; write 'negative:0.5' or 'random:0.5'.") from None
    if kind == "negative":
        return rule
    if kind == "random":
        return DropRandom(like=rule, seed=seed)
    raise RollsightError(f"selection={text!r} is unknown; write 'negative:0.5' or 'random:0.5'.")


def with_floor(rule: Rule, min_keep: int) -> Rule:
    """The same rule with at least this floor, as an adapter sets it to its host's batch size; other rules are left
    alone."""
    if isinstance(rule, DropRandom):
        return replace(rule, like=with_floor(rule.like, min_keep))
    if isinstance(rule, DropNegative):
        return replace(rule, min_keep=max(rule.min_keep, min_keep))
    return rule


def _check_fraction(p: float, min_keep: int) -> None:
    if not 0 <= p <= 1:
        raise RollsightError(
            f"p={p} is outside [0, 1]; p is the fraction of the negative units to drop, 0.5 for half of them."
        )
    if min_keep < 0:
        raise RollsightError(f"min_keep={min_keep} is negative; give the number of records that must stay, 0 for none.")


def _unit_totals(scores: Scores, unit: str) -> Tensor:
    if scores.values.dim() != 1:
        raise RollsightError(
            f"A selection needs one score per record, but values have shape {tuple(scores.values.shape)}; "
            "use targets.Action(..., each=False), or select one column."
        )
    scores.check_finite()
    return scores.sum_by(unit)


def _drop(scores: Scores, unit: str, order: Tensor, requested: int, min_keep: int, reason: str) -> Selection:
    """Drop the first `requested` units of `order`, as far as `min_keep` allows."""
    valid = scores.valid
    units, position, counts = scores.unit_column(unit)[valid].unique(return_inverse=True, return_counts=True)
    left = int(valid.sum()) - counts[order[:requested]].cumsum(0)
    reached = int((left >= min_keep).sum())
    place = torch.full_like(units, -1)
    place[order[:reached]] = torch.arange(reached, device=units.device)
    rank = torch.full_like(valid, -1, dtype=torch.long)
    rank[valid] = place[position]
    dropped = (rank >= 0).nonzero().flatten()
    dropped = dropped[torch.sort(rank[dropped], stable=True).indices]
    weights = valid.to(scores.values.dtype)
    weights[dropped] = 0
    message = ""
    if reached < requested:
        message = (
            f"{reached} of {requested} {unit} units were dropped: another would leave fewer than min_keep={min_keep} "
            f"of the {int(valid.sum())} valid records."
        )
    reason = reason if unit == "record" else f"{reason} of its {unit}"
    return Selection(weights, dropped, requested, reached, message, reason)
