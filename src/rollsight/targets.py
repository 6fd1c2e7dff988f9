"""What is explained: each target is the mean of a differentiable function of a policy and records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from rollsight import objectives
from rollsight.errors import RollsightError
from rollsight.policy import Evaluation
from rollsight.records import Records, Rows, as_rows, as_tensor, rows_of


class Target(Protocol):
    """What `score_records` asks of a target: the records it is measured on, and its terms there."""

    @property
    def name(self) -> str:
        """Short name, used for columns and logs."""
        ...

    @property
    def each(self) -> bool:
        """Explain each measured record on its own, scores (N, M), instead of their mean, scores (N,)."""
        ...

    @property
    def records(self) -> Records | None:
        """Records of its own, given with it; None where it is measured on the records that are scored."""
        ...

    def measured_on(self, records: Records) -> Records:
        """The records whose mean defines the target; `records` themselves unless it has its own."""
        ...

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
        """(N,) or (N, T): terms whose mean over valid entries is the target; 0 where invalid."""
        ...

    def count(self, records: Records) -> int:
        """What the sum of the terms is divided by."""
        ...


_MEMBERS = ("name", "each", "records", "measured_on", "terms", "count")


def checked(target: Target) -> Target:
    """The target itself; `RollsightError` where it lacks a member of `Target`."""
    if missing := [name for name in _MEMBERS if not hasattr(target, name)]:
        raise RollsightError(
            f"target={target!r} has no {' and no '.join(map(repr, missing))}; give it all of {', '.join(_MEMBERS)}, as "
            "docs/how_to/own_target.md shows."
        )
    return target


@dataclass(frozen=True)
class Return:
    """`f_return` = E[log pi(a given s) * A(s, a)] with raw advantages (Hu et al. 2025, section 3).

    Over sequences it is the mean over tokens.

    records: other records than the training ones to measure it on; None for the training ones.
    name: of the target in columns and logs.
    """

    records: Records | None = None
    name: str = "return"
    each: ClassVar[bool] = False

    def measured_on(self, records: Records) -> Records:
        return records if self.records is None else self.records

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
        advantage = objectives.per_token(records.advantages, evaluation.log_prob)
        return torch.where(records.valid, evaluation.log_prob * advantage, 0.0)

    def count(self, records: Records) -> int:
        return int(records.valid.sum())


@dataclass(frozen=True)
class Sequence:
    """`f_seq` = E[log pi(y given x) * A_last(x, y)]: the sequence's log-probability times the advantage at its last
    valid token (Hu et al. 2025, section 3). Needs records of shape (N, T).

    records: other records than the training ones to measure it on; None for the training ones.
    name: of the target in columns and logs.
    """

    records: Records | None = None
    name: str = "sequence"
    each: ClassVar[bool] = False

    def measured_on(self, records: Records) -> Records:
        measured = records if self.records is None else self.records
        if measured.log_probs.dim() != 2:
            raise RollsightError(
                f"targets.Sequence needs log_probs of shape (N, T), not {tuple(measured.log_probs.shape)}; use "
                f"targets.Return."
            )
        return measured

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
        tokens = torch.where(records.valid, evaluation.log_prob, 0.0)
        if records.advantages.dim() == 1:
            return tokens.sum(1) * records.advantages
        positions = torch.arange(records.valid.shape[1], device=records.valid.device)
        last = (records.valid * positions).argmax(1, keepdim=True)
        last_advantage = records.advantages.gather(1, last).squeeze(1)
        return tokens.sum(1) * torch.where(records.valid_rows, last_advantage, 0.0)

    def count(self, records: Records) -> int:
        return int(records.valid_rows.sum())


@dataclass(frozen=True)
class Reward:
    """`f_reward` = E[z log pi(y given x)], z = (R - mean) / (std with n - 1 + 1e-8) over the valid records that it is
    measured on (Dr. Post-Training, arXiv 2605.07063): which records make well rewarded sequences likelier?

    Needs `Records.rewards`: (N,), or (N, T), which are summed over valid tokens.

    records: other records to measure it on, such as held-out prompts; None for the training ones.
    name: of the target in columns and logs.
    """

    records: Records | None = None
    name: str = "reward"
    each: ClassVar[bool] = False

    def measured_on(self, records: Records) -> Records:
        """The records with z in place of their advantages."""
        measured = records if self.records is None else self.records
        rewards = _sequence_rewards(measured)
        return measured.with_advantages(objectives.normalize_advantages(rewards, measured.valid_rows, "buffer"))

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
        log_prob = torch.where(records.valid, evaluation.log_prob, 0.0)
        return records.advantages * (log_prob if log_prob.dim() == 1 else log_prob.sum(1))

    def count(self, records: Records) -> int:
        return int(records.valid_rows.sum())


def _sequence_rewards(records: Records) -> Tensor:
    """(N,) one reward per record, 0 where invalid; `RollsightError` where they cannot be z-scored."""
    if records.rewards is None:
        raise RollsightError("targets.Reward needs rewards; give Records(..., rewards=) of shape (N,) or (N, T).")
    valid = records.valid if records.rewards.dim() == records.valid.dim() else records.valid_rows
    rewards = torch.where(valid, records.rewards, 0.0)
    rewards = rewards if rewards.dim() == 1 else rewards.sum(1)
    kept = rewards[records.valid_rows]
    wrong = kept[~torch.isfinite(kept)]
    if len(wrong):
        raise RollsightError(
            f"targets.Reward: the reward is {float(wrong[0])} in {len(wrong)} of {len(kept)} valid record(s); fix the "
            f"reward or mark such records invalid."
        )
    if len(kept) == 0 or float(kept.min()) == float(kept.max()):
        every = f"the reward is {float(kept[0])} in all {len(kept)} valid record(s)" if len(kept) else "no valid record"
        raise RollsightError(
            f"targets.Reward: {every}, so it cannot be z-scored; give rewards that differ, or use another target."
        )
    return rewards


@dataclass(frozen=True)
class Objective:
    """The training objective itself, as its mean over valid records: which records pull the way the whole update goes?

    objective: None means PPO with its defaults; give the trainer's own.
    records: other records than the training ones to measure it on; None for the training ones.
    name: of the target in columns and logs.
    """

    objective: objectives.Objective | None = None
    records: Records | None = None
    name: str = "objective"
    each: ClassVar[bool] = False

    def measured_on(self, records: Records) -> Records:
        measured = records if self.records is None else self.records
        return self._objective.prepare(measured)

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
        return self._objective.terms(evaluation, records)

    def count(self, records: Records) -> int:
        return int(records.valid.sum())

    @property
    def _objective(self) -> objectives.Objective:
        return objectives.PPO() if self.objective is None else self.objective


class Calibration:
    """`f_calibration` = E[-(Q(s, a) - G)^2 / 2], the mean over records and critics: how well a critic's values agree
    with returns G that really came. Of episodes that are played for it, it is held out from training.

    records: with `returns`, (N,), the discounted returns G from (s, a) on.
    each: explain every record on its own, scores (N, M), or with `groups` the mean over each of them, (N, G), groups
        ascending.
    groups: (N,) integers, with each=True.
    """

    def __init__(self, records: Records, *, each: bool = False, groups: Any = None, name: str = "calibration") -> None:
        self.records = records
        self.each = each
        self.groups = None if groups is None else as_tensor(groups)
        self.name = name
        _check_groups("Calibration", self.groups, each, len(records), "records")

    def measured_on(self, records: Records) -> Records:
        return self.records

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
        errors = objectives.q_errors(evaluation, records, "targets.Calibration", "the returns that really came")
        return -(errors**2).mean(1) / 2

    def count(self, records: Records) -> int:
        return int(records.valid.sum())


class Action:
    """`f_action` = log pi(a given s) for given state-action pairs: why does the agent do this here?

    obs, actions: as in `Records`, with leading M. each=False explains their mean (scores (N,)); each=True explains
    every pair on its own (scores (N, M)), or with `groups`, (M,) integers, the mean of the pairs of every group
    (scores (N, G), groups ascending).
    """

    def __init__(self, obs: Any, actions: Any, each: bool = False, name: str = "action", *, groups: Any = None) -> None:
        self.obs: Rows = as_rows(obs, "obs")
        self.actions: Rows = as_rows(actions, "actions")
        self.each = each
        self.name = name
        if rows_of(self.obs) != rows_of(self.actions) or rows_of(self.obs) == 0:
            raise RollsightError(
                f"targets.Action: {rows_of(self.obs)} observations and {rows_of(self.actions)} actions; "
                "give the same number of both, at least one (with a leading dimension)."
            )
        self.groups = None if groups is None else as_tensor(groups)
        _check_groups("Action", self.groups, each, rows_of(self.obs), "pairs")
        none = torch.zeros(rows_of(self.obs))
        self.records = Records(self.obs, self.actions, none, none)

    def measured_on(self, records: Records) -> Records:
        pairs = rows_of(self.obs)
        length = records.log_probs.shape[1:]
        if length and isinstance(self.actions, Tensor):  # sequences may be of another length than the records'
            length = self.actions.shape[1:2]
        shape = (pairs, *length)
        return Records(self.obs, self.actions, records.log_probs.new_zeros(shape), records.log_probs.new_zeros(shape))

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
        return evaluation.log_prob if evaluation.log_prob.dim() == 1 else evaluation.log_prob.sum(1)

    def count(self, records: Records) -> int:
        return len(records)


def _check_groups(target: str, groups: Tensor | None, each: bool, count: int, what: str) -> None:
    if groups is not None and (not each or groups.shape != (count,)):
        raise RollsightError(
            f"targets.{target}: groups has shape {tuple(groups.shape)} and each={each}; give one integer for each of "
            f"the {count} {what}, and each=True."
        )
