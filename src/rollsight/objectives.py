"""The trainer's exact per-record training objective (maximised), one class per algorithm.

An objective answers two calls: `prepare(records)` puts normalised advantages in place of the raw ones, over the whole
buffer; `terms(evaluation, records)` gives each record's own term, unscaled: no 1/N, no minibatch mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, Protocol

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

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
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

    advantage: "raw"; "buffer", (A - mean) / (std with n - 1 + 1e-8) over the valid records; "chunk:64", the same over
        consecutive chunks of 64 records (what the paper's released code did).
    clip_range: c; higher lets the policy move further. At the behaviour policy the ratio r is 1 and the clip is
        inactive.
    entropy: coefficient of the entropy bonus; 0 leaves it out, as in the paper.
    value: coefficient of the value error; 0 leaves the policy term alone, as in the paper.
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

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
        advantage = per_token(records.advantages, evaluation.log_prob)
        # The selection before exp keeps an arbitrary log-probability of an invalid token from becoming inf * 0.
        log_ratio = torch.where(records.valid, evaluation.log_prob - records.log_probs, 0.0)
        ratio = torch.exp(log_ratio)
        clipped = torch.clamp(ratio, 1 - self.clip_range, 1 + self.clip_range)
        policy_term = torch.min(ratio * advantage, clipped * advantage)
        return _with_bonuses(policy_term, evaluation, records, self.entropy, self.value)


@dataclass(frozen=True)
class A2C:
    """Advantage actor-critic (Mnih et al. 2016), to be maximised:

        l_i = A_i log pi(a_i given s_i) + entropy * H_i - value * (R_i - V_i)^2

    advantage: as in `PPO`; the default is "raw", as Stable-Baselines3's A2C has it.
    entropy: coefficient of the entropy bonus.
    value: coefficient of the value error.
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

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
        policy_term = per_token(records.advantages, evaluation.log_prob) * evaluation.log_prob
        return _with_bonuses(policy_term, evaluation, records, self.entropy, self.value)


@dataclass(frozen=True)
class GRPO:
    """Group relative policy optimisation (Shao et al. 2024, equation 3) without its KL term, to be maximised over
    sequences (N, T), in the variants that TRL's `loss_type` names:

        l_it = w_i min(r_it A_i, clip(r_it, 1 - c_low, 1 + c_high) A_i)

    A sequence's term is the sum over its tokens. What the batch as a whole is divided by (its sequences, or its tokens
    for "dapo", "bnpo" and "cispo") is left out, as 1/N is. Advantages are used as they stand in the records: the
    group's baseline is the trainer's.

    loss: "grpo": w_i = 1 / |o_i|, the mean over the sequence's tokens; "dapo", "bnpo", "luspo": w_i = 1; "dr_grpo": w_i
        = 1 / max_length; "cispo": w_i = 1 and l_it = min(r_it, c_high) A_i log pi_it, where the ratio has no gradient.
    clip_low: c_low; higher lets probabilities fall further in one round.
    clip_high: c_high; higher lets probabilities rise further. "cispo" wants one above 1 (5, say), below it scales all
        alike.
    importance: "token", a ratio r_it for each token, or "sequence", the exponential of their mean log-ratio (GSPO).
    max_length: the longest completion allowed; "dr_grpo" needs it.
    on_policy: the present policy made the batch, so its own log-probabilities are the old ones, and the records' are
        not read. The gradient is then w_i A_i grad log pi_it in every variant ("cispo": times min(1, c_high)).
    normalisation: always "raw".
    """

    loss: Literal["grpo", "dapo", "bnpo", "dr_grpo", "cispo", "luspo"] = "grpo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    importance: Literal["token", "sequence"] = "token"
    max_length: int | None = None
    on_policy: bool = False
    normalisation: str = field(default="raw", init=False)

    def __post_init__(self) -> None:
        losses = ("grpo", "dapo", "bnpo", "dr_grpo", "cispo", "luspo")
        if self.loss not in losses:
            raise RollsightError(f"GRPO: loss={self.loss!r} is unknown; give {', '.join(losses)}.")
        if self.loss == "dr_grpo" and not self.max_length:
            raise RollsightError("GRPO: loss='dr_grpo' divides by the longest completion allowed; give max_length=.")

    def prepare(self, records: Records) -> Records:
        return records

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
        log_prob, log_ratio = _log_ratio(evaluation, records, self.on_policy)
        lengths = records.valid.sum(1, keepdim=True).clamp(min=1)
        if self.importance == "sequence":
            log_ratio = (log_ratio.sum(1, keepdim=True) / lengths).expand_as(log_prob)
        ratio, advantage = torch.exp(log_ratio), per_token(records.advantages, log_prob)
        if self.loss == "cispo":
            terms = torch.clamp(ratio, max=self.clip_high).detach() * advantage * log_prob
        else:
            terms = torch.min(ratio * advantage, torch.clamp(ratio, 1 - self.clip_low, 1 + self.clip_high) * advantage)
        if self.loss == "grpo":
            terms = terms / lengths
        if self.loss == "dr_grpo" and self.max_length:
            terms = terms / self.max_length
        return torch.where(records.valid, terms, 0.0)


@dataclass(frozen=True)
class RLOO:
    """REINFORCE leave-one-out (Ahmadian et al. 2024) with TRL's clipped ratio of whole sequences, to be maximised:

        l_i = min(r_i A_i, clip(r_i, 1 - c_low, 1 + c_high) A_i),  r_i = exp(sum_t log pi_it - log pi_old_it)

    Records of shape (N, T) with one advantage per sequence, used as it stands; the terms are (N,). The KL penalty is
    in the reward.

    clip_low: c_low; higher lets probabilities fall further in one round.
    clip_high: c_high; higher lets probabilities rise further.
    on_policy: as in `GRPO`.
    normalisation: always "raw".
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    on_policy: bool = False
    normalisation: str = field(default="raw", init=False)

    def prepare(self, records: Records) -> Records:
        if records.advantages.dim() != 1:
            raise RollsightError(
                f"RLOO: `advantages` has shape {tuple(records.advantages.shape)}; give one per sequence, (N,)."
            )
        return records

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
        ratio = torch.exp(_log_ratio(evaluation, records, self.on_policy)[1].sum(1))
        clipped = torch.clamp(ratio, 1 - self.clip_low, 1 + self.clip_high)
        return torch.min(ratio * records.advantages, clipped * records.advantages)


@dataclass(frozen=True)
class TD:
    """The loss of a critic trained on transitions (DQN, SAC, TD3) as its negative, to be maximised:

        l_i = -scale * sum over critics c of d(Q_c(s_i, a_i) - y_i)

    y_i is `records.returns`: the update's target, computed before and frozen, so that the gradient is the semi-gradient
    that the trainer follows. The policy's module is the critic (`Evaluation.of_critics`).

    loss: "squared", d(x) = x^2; "huber", d(x) = x^2 / 2 within 1 of 0 and |x| - 1/2 beyond.
    scale: what the loss is multiplied by: 0.5 in Stable-Baselines3's SAC, 1 in its TD3 and DQN.
    normalisation: always "raw".
    """

    loss: Literal["huber", "squared"] = "squared"
    scale: float = 1.0
    normalisation: str = field(default="raw", init=False)

    def __post_init__(self) -> None:
        if self.loss not in ("huber", "squared"):
            raise RollsightError(f"TD: loss={self.loss!r} is unknown; give 'huber' or 'squared'.")
        if not self.scale > 0:
            raise RollsightError(f"TD: scale is {self.scale}; give a number above 0.")

    def prepare(self, records: Records) -> Records:
        return records

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
        error = q_errors(evaluation, records, "objectives.TD", "the targets of its update")
        size = error.abs()
        loss = error**2 if self.loss == "squared" else torch.where(size < 1, error**2 / 2, size - 0.5)
        return torch.where(records.valid, -self.scale * loss.sum(1), 0.0)


@dataclass(frozen=True)
class ActorValue:
    """What an actor is trained to maximise through its critic, as SAC's is: l_i = min Q(s_i, a) - alpha log pi(a), the
    action a drawn from the actor by reparametrisation. The policy's `evaluate` gives it as `value`.

    normalisation: always "raw".
    """

    normalisation: str = field(default="raw", init=False)

    def prepare(self, records: Records) -> Records:
        return records

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
        if evaluation.value is None:
            raise RollsightError("objectives.ActorValue needs `value` from `evaluate`: what the actor maximises.")
        return torch.where(records.valid, evaluation.value, 0.0)


def q_errors(evaluation: Evaluation, records: Records, needed_by: str, what: str) -> Tensor:
    """(N, C) Q_c(s, a) less `records.returns`, 0 where invalid; `RollsightError` where one of both is missing.

    what: what the returns are, for the error.
    """
    if evaluation.q_values is None:
        raise RollsightError(f"{needed_by} needs a critic: let `evaluate` return rollsight.Evaluation.of_critics(...).")
    if records.returns is None or records.returns.dim() != 1:
        raise RollsightError(f"{needed_by} needs {what}: give Records(..., returns=) of shape (N,).")
    return torch.where(records.valid[:, None], evaluation.q_values - records.returns[:, None], 0.0)


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
    raise RollsightError(f"advantage={rule!r} is not a normalisation; give 'raw', 'buffer' or 'chunk:64' (2 or more).")


def per_token(column: Tensor, log_prob: Tensor) -> Tensor:
    """A per-sequence column broadcast over tokens."""
    return column if column.dim() == log_prob.dim() else column[:, None].expand_as(log_prob)


def _log_ratio(evaluation: Evaluation, records: Records, on_policy: bool) -> tuple[Tensor, Tensor]:
    """(N, T) log-probabilities and their difference to the old ones; both 0 where invalid."""
    if evaluation.log_prob.dim() != 2:
        raise RollsightError(
            f"GRPO and RLOO need log-probabilities of tokens, (N, T), not {tuple(evaluation.log_prob.shape)}; use PPO."
        )
    log_prob = torch.where(records.valid, evaluation.log_prob, 0.0)
    old = log_prob.detach() if on_policy else records.log_probs
    return log_prob, torch.where(records.valid, log_prob - old, 0.0)


def _with_bonuses(
    policy_term: Tensor, evaluation: Evaluation, records: Records, entropy: float, value: float
) -> Tensor:
    terms = policy_term
    if entropy:
        # A distribution without a closed-form entropy: -log pi is the one-sample estimate, as hosts use it.
        bonus = -evaluation.log_prob if evaluation.entropy is None else evaluation.entropy
        terms = terms + entropy * bonus
    if value:
        if evaluation.value is None or records.returns is None:
            missing = "value from `evaluate`" if evaluation.value is None else "`returns` in the records"
            raise RollsightError(f"The objective has value={value} but there is no {missing}; give it or set value=0.")
        terms = terms - value * (per_token(records.returns, evaluation.log_prob) - evaluation.value) ** 2
    return torch.where(records.valid, terms, 0.0)
