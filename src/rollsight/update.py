"""One round's optimisation as the host does it: minibatches, loss, gradient clipping, early stopping.

`replay` reproduces the operations of Stable-Baselines3's `PPO.train` and `A2C.train` in their order, so that it ends
in the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rollsight import objectives
from rollsight.arrays import Ints
from rollsight.errors import RollsightError
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records

DropMode: TypeAlias = Literal["repack", "mask"]


@dataclass(frozen=True)
class UpdateRule:
    """The hyper-parameters of one update, with schedules already evaluated for its round.

    algorithm: "ppo" (clipped surrogate) or "a2c" (one step on A log pi).
    n_epochs: passes over the records; more learn faster and go further from the policy that collected them.
    batch_size: records per minibatch; None takes all at once. Lower takes more and noisier steps.
    clip_range: of the probability ratio; higher lets the policy move further.
    clip_range_vf: of the value function's change; None does not clip it.
    normalize_advantage: per minibatch, (A - mean) / (std + 1e-8).
    normalize_single: also where the minibatch has one record.
    ent_coef: weight of the entropy bonus; higher explores more.
    vf_coef: weight of the value loss.
    max_grad_norm: gradients longer than this are cut to it.
    target_kl: stop the update where the approximate KL exceeds 1.5 times this; None never does.
    """

    algorithm: Literal["ppo", "a2c"]
    n_epochs: int
    batch_size: int | None
    clip_range: float = 0.2
    clip_range_vf: float | None = None
    normalize_advantage: bool = True
    normalize_single: bool = False
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float | None = None

    def policy_term(self, advantage: str | None = None) -> objectives.PPO | objectives.A2C:
        """The policy term of the update, which scores follow.

        advantage: its normalisation; None stands for the update's own, taken over the whole buffer.
        """
        if advantage is None:
            advantage = "buffer" if self.normalize_advantage else "raw"
        if self.algorithm == "a2c":
            return objectives.A2C(advantage)
        return objectives.PPO(advantage, self.clip_range)


@dataclass(frozen=True, eq=False)
class Step:
    """One optimiser step about to be taken; the policy is still at its parameters.

    epoch: number of the epoch.
    index: (B,) rows of the records.
    minibatch: those records with the advantages that this step uses.
    weights: (B,), or None where all are 1.
    clip: factor that gradient clipping put on the gradient (1: none).
    learning_rate: of the first parameter group.
    """

    epoch: int
    index: Ints
    minibatch: Records
    weights: Tensor | None
    clip: float
    learning_rate: float


def repack(order: Ints, batch_size: int | None) -> list[Ints]:
    """Minibatches from an order of surviving records. A last one smaller than half of the batch size, or of a single
    record, is left out when at least one full one exists: its advantage statistics would be noise."""
    size = batch_size or len(order)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    if len(parts) > 1 and size > 1 and len(parts[-1]) < max(size / 2, 2):
        parts.pop()
    return parts


def run_update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    records: Records,
    rule: UpdateRule,
    rng: np.random.RandomState,
    semantic: DropMode = "repack",
    weights: Tensor | None = None,
) -> Iterator[Step]:
    """Train the policy in place, yielding each step just before the optimiser takes it.

    weights None is the stock update; invalid records weigh 0. With weights (N,), 0 and 1 only, "repack" forms the
    minibatches from the records of weight 1; "mask", with any weights, keeps the minibatches, normalised advantages and
    denominators of the full buffer and multiplies each record's loss.
    """
    if not bool(records.valid.all()):
        weights = records.valid_rows * (1.0 if weights is None else weights)
    if semantic == "repack" and weights is not None:
        kept = _kept(weights)
        rows, weights = (None if len(kept) == len(records) else kept), None
    else:
        rows = None
    for epoch in range(rule.n_epochs):
        if rows is not None:
            minibatches = repack(rng.permutation(rows), rule.batch_size)
        else:
            minibatches = full_minibatches(len(records), rule, rng)
        for index in minibatches:
            step = _step(policy, optimizer, records, rule, epoch, index, weights)
            if step is None:
                return
            if step.weights is not None and not bool(step.weights.any()):
                continue
            yield step
            optimizer.step()


def full_minibatches(n: int, rule: UpdateRule, rng: np.random.RandomState) -> list[Ints]:
    """One epoch's minibatches of a full buffer of n records, as the host draws them."""
    order = rng.permutation(n)
    size = rule.batch_size or n
    return [order[start : start + size] for start in range(0, n, size)]


def with_normalized_advantages(minibatch: Records, rule: UpdateRule) -> Records:
    """The minibatch with the advantages that its step uses."""
    advantages = minibatch.advantages
    if rule.normalize_advantage and (len(advantages) > 1 or rule.normalize_single):
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return minibatch.with_advantages(advantages)


def _kept(weights: Tensor) -> Ints:
    if not bool(((weights == 0) | (weights == 1)).all()):
        raise RollsightError(
            "semantic='repack' takes weights of 0 and 1 only, because it leaves records out; use semantic='mask' for "
            "others."
        )
    kept: Ints = weights.cpu().numpy().nonzero()[0]
    if len(kept) == 0:
        raise RollsightError("Every record has weight 0, so there is nothing to train on; keep at least one.")
    return kept


def _step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    records: Records,
    rule: UpdateRule,
    epoch: int,
    index: Ints,
    weights: Tensor | None,
) -> Step | None:
    """Gradients of one minibatch, clipped; None where target_kl ends the update."""
    minibatch = records.take(torch.from_numpy(index).to(records.log_probs.device))
    w = None if weights is None else weights[torch.from_numpy(index)].to(minibatch.log_probs)
    evaluation = policy(minibatch)
    minibatch = with_normalized_advantages(minibatch, rule)
    loss = minibatch_loss(evaluation, minibatch, rule, w)
    with torch.no_grad():
        kl = approximate_kl(evaluation, minibatch).item()
    if rule.target_kl is not None and kl > 1.5 * rule.target_kl:
        return None
    optimizer.zero_grad()
    loss.backward()
    length = float(torch.nn.utils.clip_grad_norm_(policy.module.parameters(), rule.max_grad_norm))
    return Step(
        epoch,
        index,
        minibatch,
        w,
        min(1.0, rule.max_grad_norm / (length + 1e-6)),
        float(optimizer.param_groups[0]["lr"]),
    )


def approximate_kl(evaluation: Evaluation, minibatch: Records) -> Tensor:
    """() what `target_kl` is compared with: the mean of (r - 1) - log r over the minibatch."""
    log_ratio = evaluation.log_prob - minibatch.log_probs
    return torch.mean((torch.exp(log_ratio) - 1) - log_ratio)


def minibatch_loss(evaluation: Evaluation, minibatch: Records, rule: UpdateRule, w: Tensor | None) -> Tensor:
    """() the minimised loss of a minibatch with normalised advantages, with the operations in the host's order.

    w: (B,) weights of the records' terms, over the full minibatch's denominator; None is the host's own mean.
    """

    def mean(terms: Tensor) -> Tensor:
        return terms.mean() if w is None else (w * terms).sum() / len(w)

    log_prob, advantages = evaluation.log_prob, minibatch.advantages
    if rule.algorithm == "a2c":
        policy_loss = -mean(advantages * log_prob)
    else:
        ratio = torch.exp(log_prob - minibatch.log_probs)
        clipped = advantages * torch.clamp(ratio, 1 - rule.clip_range, 1 + rule.clip_range)
        policy_loss = -mean(torch.min(advantages * ratio, clipped))
    value = evaluation.value
    if value is None or minibatch.returns is None or (rule.clip_range_vf is not None and minibatch.values is None):
        raise RollsightError(
            "The update has a value loss, so `evaluate` must give a value and the records need `returns` "
            f"(and `values` for clip_range_vf={rule.clip_range_vf})."
        )
    if rule.clip_range_vf is not None and minibatch.values is not None:
        value = minibatch.values + torch.clamp(value - minibatch.values, -rule.clip_range_vf, rule.clip_range_vf)
    value_loss = F.mse_loss(minibatch.returns, value) if w is None else mean((minibatch.returns - value) ** 2)
    entropy_loss = mean(log_prob) if evaluation.entropy is None else -mean(evaluation.entropy)
    return policy_loss + rule.ent_coef * entropy_loss + rule.vf_coef * value_loss
