"""Targeted intervention (Hu et al. 2025, section 3): what would a round have done without some of its records?

The round is replayed from its snapshot in several arms, and the policies they end in are compared by their returns. The
counterfactual is the *replay*: the buffer, its advantages and its returns stay as they were.

`unfiltered`  every valid record: what the others are compared with.
`selection`   without what a rule leaves out, by the records' scores for `f_return`; or `listed`, without a given list.
`random`      without the same number of random units: the control for having fewer records.
`permuted`    without what the rule leaves out by scores computed with advantages permuted over the records: the control
              for the in-sample trap (a selection lengthens the mean gradient whatever the advantages say).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rollsight.analysis.intervals import percentile_interval
from rollsight.arrays import Floats
from rollsight.errors import RollsightError
from rollsight.records import Records
from rollsight.scoring import Scores, score_records
from rollsight.selection import DropNegative, DropRandom, Rule
from rollsight.snapshot import Snapshot
from rollsight.streams import Purpose, seed_from, stream
from rollsight.update import DropMode

BASELINE = "unfiltered"
_RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """A mean difference in return and its 95 % percentile interval.

    mean: the mean difference.
    low, high: ends of the interval; NaN where there is none.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class ArmResult:
    """One arm of one round.

    returns: (orders, episodes) undiscounted returns after the replay.
    dropped: records left out, by order.
    steps: optimiser steps taken, by order.
    difference: to the unfiltered replay; None for that itself.
    """

    returns: Floats
    dropped: tuple[int, ...]
    steps: tuple[int, ...]
    difference: Difference | None


@dataclass(frozen=True, eq=False)
class RoundResult:
    """One round of an intervention.

    round: its number.
    records: number of its valid records.
    arms: its arms by name.
    """

    round: int
    records: int
    arms: Mapping[str, ArmResult]


@dataclass(frozen=True, eq=False)
class Intervention:
    """Rounds, each intervened on independently, and what was compared.

    env: name of the environment.
    rule: what was left out, in words.
    semantic: how it was left out, "repack" or "mask".
    target: what the scores explain.
    normalisation: how advantages are normalised in the scores.
    orders: minibatch orders per arm.
    episodes: of the evaluation of each replay.
    seed: of every random stream.
    rounds: the results by round.
    summary: by arm, the mean over rounds of the difference to the unfiltered replay.
    over_random: the selection's (or list's) difference to the random drop.
    returns: always "undiscounted".
    counterfactual: always "replay": the buffer, its advantages and its returns stay as they were.
    """

    env: str
    rule: str
    semantic: DropMode
    target: str
    normalisation: str
    orders: int
    episodes: int
    seed: int
    rounds: tuple[RoundResult, ...]
    summary: Mapping[str, Difference]
    over_random: Difference
    returns: Literal["undiscounted"] = "undiscounted"
    counterfactual: Literal["replay"] = "replay"


def arms_by_rule(snapshot: Snapshot, rule: Rule, order: int, seed: int = 0) -> dict[str, Tensor]:
    """Each arm's weights (N,) for one minibatch order; random drops and permutations are keyed by (seed, round, order).

    The permuted arm drops the same fraction of its *own* negative units, so its size may differ a little.
    """
    scores, permuted = (
        scores_of(snapshot),
        scores_of(snapshot, (seed, snapshot.round, Purpose.INTERVENTION_PERMUTATION, order)),
    )
    chosen = rule(scores).weights
    if isinstance(rule, DropNegative):
        control = DropRandom(like=rule, seed=seed_from(seed, order))(scores).weights
    else:
        control = _as_many(chosen, snapshot.records, (seed, snapshot.round, Purpose.DROP_AS_MANY, order))
    return {
        BASELINE: torch.ones_like(chosen),
        "selection": chosen,
        "random": control,
        "permuted": rule(permuted).weights,
    }


def arms_by_list(snapshot: Snapshot, listed: Sequence[tuple[int, int]], order: int, seed: int = 0) -> dict[str, Tensor]:
    """The same for the user's own list of records, (env, step) each. Scores play no part, so nothing is permuted.

    Raises:
        RollsightError: the round has no such record.
    """
    records = snapshot.records
    place = {pair: row for row, pair in enumerate(_pairs(records))}
    unknown = [pair for pair in listed if pair not in place]
    if unknown:
        env, step = (records.ids[name] for name in ("env", "step"))
        names = ", ".join(f"{snapshot.round}:{e}:{s}" for e, s in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise RollsightError(
            f"{len(unknown)} listed record(s) do not exist ({names}): in round {snapshot.round} env goes from "
            f"{int(env.min())} to {int(env.max())}, step from {int(step.min())} to {int(step.max())}"
        )
    weights = torch.ones(len(records))
    weights[[place[pair] for pair in listed]] = 0
    control = _as_many(weights, records, (seed, snapshot.round, Purpose.DROP_AS_MANY, order))
    return {BASELINE: torch.ones_like(weights), "listed": weights, "random": control}


def dropped(weights: Tensor, records: Records) -> int:
    """How many valid records these weights leave out."""
    return int(((weights == 0) & records.valid_rows).sum())


def difference(arm: Floats, baseline: Floats, key: tuple[int, ...]) -> Difference:
    """Mean of `arm - baseline`, both (orders, episodes), with a 95 % percentile bootstrap interval.

    Orders and episodes are resampled independently of each other, each in pairs: the same order and the same episode
    (environment seed and action noise) in both. Few orders make the interval too narrow. key: of the resampling.
    """
    return _interval(np.mean(arm - baseline), _resampled(arm - baseline, key))


def over_rounds(differences: Sequence[Floats], keys: Sequence[tuple[int, ...]]) -> Difference:
    """Mean over rounds of differences (orders, episodes) each, with the keys of `difference`; the rounds are resampled
    too, where there are several."""
    means = inner = np.stack([_resampled(one, key) for one, key in zip(differences, keys, strict=True)])
    if len(inner) > 1:
        rng = stream(Purpose.BOOTSTRAP, *(number for key in keys for number in key))
        rounds = rng.integers(len(inner), size=inner.shape)
        means = inner[rounds, rng.integers(_RESAMPLES, size=inner.shape)]
    return _interval(np.mean([one.mean() for one in differences]), means.mean(0))


def _resampled(values: Floats, key: tuple[int, ...]) -> Floats:
    """(resamples,) means over resampled rows and columns of (orders, episodes)."""
    rng = stream(*key, Purpose.BOOTSTRAP)
    rows, columns = (rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n for n in values.shape)
    means: Floats = np.einsum("bo,oe,be->b", rows, values, columns, optimize=True)
    return means


def _interval(mean: np.floating[Any], resampled: Floats) -> Difference:
    found = percentile_interval(float(mean), resampled)
    return Difference(found.value, found.low, found.high)


def scores_of(snapshot: Snapshot, permutation: tuple[int, ...] | None = None) -> Scores:
    """Scores for `f_return` at the start of the round; with a key, of records whose advantages are permuted."""
    records = snapshot.records
    if permutation is not None:
        valid = records.valid_rows.nonzero().flatten()
        order = torch.from_numpy(stream(*permutation).permutation(len(valid)))
        advantages = records.advantages.clone()
        advantages[valid] = records.advantages[valid[order]]
        records = records.with_advantages(advantages)
    return score_records(snapshot.policy, records, objective=snapshot.rule.policy_term())


def _as_many(weights: Tensor, records: Records, key: tuple[int, ...]) -> Tensor:
    """Weights that leave out the same number of random valid records."""
    valid = records.valid_rows.nonzero().flatten()
    chosen = stream(*key).permutation(len(valid))[: dropped(weights, records)]
    control = torch.ones_like(weights)
    control[valid[torch.from_numpy(chosen)]] = 0
    return control


def _pairs(records: Records) -> list[tuple[int, int]]:
    if "env" not in records.ids or "step" not in records.ids:
        raise RollsightError("the snapshot's records have no env and step to find a listed record by")
    return list(zip(records.ids["env"].tolist(), records.ids["step"].tolist(), strict=True))
