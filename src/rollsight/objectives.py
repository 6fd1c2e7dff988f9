"""The trainer's exact per-record training objective (maximised), one class per algorithm.

An objective answers two calls: `prepare(records)` puts normalised advantages in place of the raw ones, over the whole
buffer; `losses(evaluation, records)` gives each record's own term, unscaled: no 1/N, no minibatch mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rollsight.errors import RollsightError
from rollsight.policy import Evaluation
from rollsight.records import Records


class Objective(Protocol):
    """What `score_records` asks of an objective."""

    def prepare(self, records: Records) -> Records:
        """The records with the advantages that the loss uses."""
        ...

    def losses(self, evaluation: Evaluation, records: Records) -> Tensor:
        """(N,) or (N, T): each record's (token's) term of the maximised objective; 0 where invalid."""
        ...

    @property
    def normalisation(self) -> str:
        """How advantages are normalised, as results name it."""
        ...


@dataclass(frozen=True)
class PPO:
    """The clipped surrogate of PPO (Schulman et al. 2017, equation 7), to be maximised:

        l_i = min(r_i A_i, clip(r_i, 1 - c, 1 + c) A_i) + entropy * H_i - value * (R_i - V_i)^2

    advantage:  "raw"; "buffer", (A - mean) / (std with n - 1 + 1e-8) over the valid records; "chunk:64", the same over
                consecutive chunks of 64 records (what the paper's released code did).
    clip_range: c. At the behaviour policy the ratio r is 1 and the clip is inactive.
    entropy, value: coefficients of the entropy bonus and the value error; 0 leaves the clipped policy term, as in the
    paper.
    """

    advantage: str = "buffer"
    clip_range: float = 0.2
    entropy: float = 0.0
    value: float = 0.0

    def __post_init__(self) -> None:
        _chunk_of(self.advantage)
        if not self.clip_range > 0:
            raise RollsightError(f"PPO: clip_range is {self.clip_range}; give a number above 0.")

    @property
    def normalisation(self) -> str:
        return self.advantage

    def prepare(self, records: Records) -> Records:
        return records.with_advantages(normalize_advantages(records.advantages, records.valid, self.advantage))

    def losses(self, evaluation: Evaluation, records: Records) -> Tensor:
        advantage = per_token(records.advantages, evaluation.log_prob)
        # The selection before exp keeps an arbitrary log-probability of an invalid token from becoming inf * 0.
        log_ratio = torch.where(records.valid, evaluation.log_prob - records.log_probs, 0.0)
        ratio = torch.exp(log_ratio)
        clipped = torch.clamp(ratio, 1 - self.clip_range, 1 + self.clip_range)
        policy_term = torch.min(ratio * advantage, clipped * advantage)
        return _with_bonuses(policy_term, evaluation, records, self.entropy, self.value)


@dataclass(frozen=True)
class A2C:
    """Advantage actor-critic (Mnih et al. 2016): l_i = A_i log pi(a_i given s_i) + entropy * H_i - value * (R_i -
    V_i)^2.

    `advantage` as in `PPO`; the default is "raw", as Stable-Baselines3's A2C has it.
    """

    advantage: str = "raw"
    entropy: float = 0.0
    value: float = 0.0

    def __post_init__(self) -> None:
        _chunk_of(self.advantage)

    @property
    def normalisation(self) -> str:
        return self.advantage

    def prepare(self, records: Records) -> Records:
        return records.with_advantages(normalize_advantages(records.advantages, records.valid, self.advantage))

    def losses(self, evaluation: Evaluation, records: Records) -> Tensor:
        policy_term = per_token(records.advantages, evaluation.log_prob) * evaluation.log_prob
        return _with_bonuses(policy_term, evaluation, records, self.entropy, self.value)


def normalize_advantages(advantages: Tensor, valid: Tensor, rule: str) -> Tensor:
    """Normalise over valid entries as `rule` says; invalid entries become 0. Shapes (N,) or (N, T), both alike.

    One single value is left as it is, as Stable-Baselines3 does. A last chunk of one joins the chunk before it.
    """
    chunk = _chunk_of(rule)
    mask = valid if valid.dim() == advantages.dim() else valid.any(1)
    kept = advantages[mask]
    if chunk is not None and len(kept) > 1:
        parts = list(kept.split(chunk)) if chunk else [kept]
        if len(parts[-1]) == 1 and len(parts) > 1:
            parts[-2:] = [torch.cat(parts[-2:])]
        kept = torch.cat([(part - part.mean()) / (part.std() + 1e-8) for part in parts])
    normalised = torch.zeros_like(advantages)
    normalised[mask] = kept
    return normalised


def _chunk_of(rule: str) -> int | None:
    """None: raw; 0: the whole buffer; k: chunks of k."""
    if rule == "raw":
        return None
    if rule == "buffer":
        return 0
    match = re.fullmatch(r"chunk:(\d+)", rule)
    if match and int(match[1]) >= 2:
        return int(match[1])
    raise RollsightError(f"advantage={rule!r} is no normalisation; give 'raw', 'buffer' or 'chunk:64' (2 or more).")


def per_token(column: Tensor, log_prob: Tensor) -> Tensor:
    """A per-sequence column broadcast over tokens."""
    return column if column.dim() == log_prob.dim() else column[:, None].expand_as(log_prob)


def _with_bonuses(
    policy_term: Tensor, evaluation: Evaluation, records: Records, entropy: float, value: float
) -> Tensor:
    losses = policy_term
    if entropy:
        # A distribution without a closed-form entropy: -log pi is the one-sample estimate, as hosts use it.
        bonus = -evaluation.log_prob if evaluation.entropy is None else evaluation.entropy
        losses = losses + entropy * bonus
    if value:
        if evaluation.value is None or records.returns is None:
            missing = "value from `evaluate`" if evaluation.value is None else "`returns` in the records"
            raise RollsightError(f"The objective has value={value} but there is no {missing}; give it or set value=0.")
        losses = losses - value * (per_token(records.returns, evaluation.log_prob) - evaluation.value) ** 2
    return torch.where(records.valid, losses, 0.0)
