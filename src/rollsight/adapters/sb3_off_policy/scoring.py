"""Scores of all transitions in a buffer, and how far they can be believed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rollsight import targets
from rollsight.adapters.sb3_off_policy.actors import ActorProblem
from rollsight.adapters.sb3_off_policy.critics import Critic
from rollsight.adapters.sb3_off_policy.held_out import HeldOut
from rollsight.adapters.sb3_off_policy.translate import Replay, newest
from rollsight.errors import OptionError
from rollsight.objectives import ActorValue
from rollsight.records import Records
from rollsight.scoring import Scores, score_records
from rollsight.scoring.halves import split_halves
from rollsight.scoring.ranks import spearman
from rollsight.scoring.score import Backend
from rollsight.streams import Purpose, stream

NAMES = ("calibration", "bellman", "improvement")
HELD_OUT = ("calibration", "improvement")  # targets that are measured on fresh episodes
RECENT = 1000  # transitions that the recent Bellman error is measured on


def targets_of(given: Any) -> list[str | targets.Target]:
    """The names and objects, checked; their names must differ.

    Raises:
        OptionError: a name is unknown, or a target explains each record on its own.
    """
    many = list(given) if isinstance(given, (list, tuple)) else [given]
    for one in many:
        if isinstance(one, str) and one not in NAMES:
            raise OptionError(f"{{target}} is unknown: give {', '.join(map(repr, NAMES))}, or an object", target=one)
        if not isinstance(one, str) and targets.checked(one).each:
            raise OptionError("{target} has each=True, many scores a transition: give each=False", target=one.name)
    names = [name_of(one) for one in many]
    if not many or len(set(names)) < len(names):
        raise OptionError("{target} needs at least one target, each with a name of its own", target=names)
    return many


def name_of(target: str | targets.Target) -> str:
    """As columns and logs have it."""
    return target if isinstance(target, str) else target.name


def score(target: str | targets.Target, critic: Critic, replay: Replay, backend: Backend) -> Scores:
    """One score a transition, of a target other than "calibration"."""
    if isinstance(target, str):
        target = targets.Objective(critic.objective, newest(replay, RECENT), name=target)
    return score_records(critic.policy, replay.records, target, critic.objective, backend)


def score_with_trust(
    critic: Critic, replay: Replay, held: HeldOut, backend: Backend, key: tuple[int, int]
) -> tuple[Scores, dict[str, float]]:
    """Scores of the target "calibration", and the trust line's entries of the round's summary: how the ranking agrees
    when either half of the held-out episodes gives the target, and the same where returns are permuted over the steps.

    All come of one pass over the transitions. key: (seed, round).
    """
    records = held.records
    first = split_halves(records, int(stream(*key, Purpose.CROSS_FIT_HALVES).integers(2**31)))
    order = torch.from_numpy(stream(*key, Purpose.PERMUTED_ADVANTAGES).permutation(len(records)))
    assert records.returns is not None
    permuted = replace(records, returns=records.returns[order.to(records.returns.device)])
    twice = _both(records, permuted)
    groups = torch.cat([(~first).long(), 2 + (~first).long()])
    target = targets.Calibration(twice, each=True, groups=groups)
    scores = score_records(critic.policy, replay.records, target, critic.objective, backend)
    share = float(first.double().mean())
    valid = scores.valid.cpu()
    columns = [column.cpu()[valid] for column in scores.values.unbind(1)]
    whole = share * scores.values[:, 0] + (1 - share) * scores.values[:, 1]
    line = {
        "trust_split_half": spearman(columns[0], columns[1]),
        "trust_split_half_permuted": spearman(columns[2], columns[3]),
    }
    return replace(scores, values=whole), line


def _both(one: Records, other: Records) -> Records:
    def joined(a: Any, b: Any) -> Any:
        return torch.cat([a, b]) if isinstance(a, Tensor) else {name: torch.cat([a[name], b[name]]) for name in a}

    assert one.returns is not None
    assert other.returns is not None
    zeros = torch.cat([one.log_probs, other.log_probs])
    returns = torch.cat([one.returns, other.returns])
    return Records(joined(one.obs, other.obs), joined(one.actions, other.actions), zeros, zeros, returns=returns)


def score_actor(actor: ActorProblem, backend: Backend) -> Scores:
    """One score a transition: what the actor's own loss on its state does to the policy improvement."""
    target = targets.Return(actor.held_out, name="improvement")
    return score_records(actor.policy, actor.records, target, ActorValue(), backend)
