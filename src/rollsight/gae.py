"""Generalised advantage estimation."""

from __future__ import annotations

import numpy as np

from rollsight.arrays import Array


def gae(
    rewards: Array, values: Array, ends: Array, last_values: Array, gamma: float, gae_lambda: float
) -> tuple[Array, Array]:
    """GAE (Schulman et al. 2016), as Stable-Baselines3 computes it: advantages and returns, each (T, E) in
    float32.

    rewards: (T, E), with the discounted value of the last observation already added where an episode was cut off.
    values:  (T, E) of the observations; last_values: (E,) of the observation after the last step.
    ends:    (T, E) booleans: nothing flows from the next step into this one.
    """
    advantages = np.empty(rewards.shape, np.float32)
    following = np.concatenate([values[1:], last_values[None]]).astype(np.float64)
    deltas = rewards + gamma * np.where(ends, 0.0, following) - values
    # Plain numbers in plain lists: a loop over small arrays takes twenty times as long.
    for e in range(rewards.shape[1]):
        total, column = 0.0, list[float]()
        flow = np.where(ends[::-1, e], 0.0, gamma * gae_lambda).tolist()
        for delta, share in zip(deltas[::-1, e].tolist(), flow, strict=True):
            total = delta + share * total
            column.append(total)
        advantages[:, e] = column[::-1]
    return advantages, (advantages + values).astype(np.float32)
