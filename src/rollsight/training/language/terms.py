"""The rewards of tokens, their advantages, and their losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rollsight import objectives
from rollsight.gae import gae
from rollsight.policy import Evaluation
from rollsight.records import Records
from rollsight.training.language.settings import Options


def token_rewards(rewards: Tensor, kl: Tensor, valid: Tensor, coefficient: float) -> Tensor:
    """(N, T) rewards of tokens: the penalty at each, the reward (N,) added at the last valid one; kl: (N, T)."""
    positions = torch.arange(valid.shape[1], device=valid.device)
    last = valid & (positions == valid.sum(1, keepdim=True) - 1)
    return torch.where(valid, -coefficient * kl, 0.0) + torch.where(last, rewards[:, None], 0.0)


def with_advantages(records: Records, rewards: Tensor, gamma: float, gae_lambda: float) -> Records:
    """The records with returns and, whitened over all valid tokens, advantages; rewards: (N, T)."""
    valid, values = records.valid, records.values
    assert values is not None
    ends = ~torch.cat([valid[:, 1:], torch.zeros_like(valid[:, :1])], 1)  # nothing flows from padding into a completion
    earned, old, last = (c.T.numpy(force=True) for c in (rewards, values, ends))
    estimated, returns = gae(earned, old, last, np.zeros(len(records)), gamma, gae_lambda)
    raw = torch.from_numpy(estimated.T.copy()).to(values.device)
    whitened = objectives.normalize_advantages(torch.where(valid, raw, 0.0), valid, "buffer")
    return replace(records, advantages=whitened, returns=torch.from_numpy(returns.T.copy()).to(values.device))


def losses(evaluation: Evaluation, batch: Records, options: Options) -> tuple[Tensor, Tensor]:
    """Clipped policy and value losses of every token, each (n, T), to be minimised; 0 where invalid."""
    assert evaluation.value is not None
    assert batch.values is not None
    assert batch.returns is not None
    policy_loss = -objectives.PPO("raw", options.clip_range).terms(evaluation, batch)
    near = batch.values + (evaluation.value - batch.values).clamp(-options.value_clip, options.value_clip)
    value_loss = 0.5 * torch.max((evaluation.value - batch.returns) ** 2, (near - batch.returns) ** 2)
    return policy_loss, torch.where(batch.valid, value_loss, 0.0)
