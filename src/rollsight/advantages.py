"""Advantages: generalised advantage estimation, and the estimate from repeats inside a buffer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollsight.arrays import Array


def estimate(
    rewards: Array, values: Array, ends: Array, last_values: Array, gamma: float, gae_lambda: float
) -> tuple[Array, Array]:
    """GAE (Schulman et al. 2016), as Stable-Baselines3 computes it: advantages and returns,
    each (T, E) in float32.

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


def tabular_advantages(
    states: Sequence[bytes],
    actions: Sequence[bytes],
    returns: Array,
) -> Array:
    """(N,) the paper's estimate from repeats inside the buffer: the mean observed return of the same (s, a) minus
    that of the same s.

    returns: (N,) observed discounted returns, nan where the episode's end is not in the buffer; those are left out.
    nan where the state was visited once only, or never with a known return after that action.
    """
    by_state: dict[bytes, list[float]] = {}
    by_pair: dict[tuple[bytes, bytes], list[float]] = {}
    pairs = list(zip(states, actions, strict=True))
    for (state, action), value in zip(pairs, returns.tolist(), strict=True):
        if np.isfinite(value):
            by_state.setdefault(state, []).append(value)
            by_pair.setdefault((state, action), []).append(value)
    q = {pair: float(np.mean(values)) for pair, values in by_pair.items()}
    v = {state: float(np.mean(values)) for state, values in by_state.items() if len(values) > 1}
    return np.array([q.get(pair, np.nan) - v.get(pair[0], np.nan) for pair in pairs])


def observed_returns(reward: Array, episode: Array, episode_step: Array, complete: Array, gamma: float) -> Array:
    """(N,) discounted sum of the rewards from each record to the end of its episode.

    complete: (N,) whether the episode's end is among the records; nan where it is not.
    """
    returns = np.full(len(reward), np.nan)
    following, after = -1, 0.0
    for index in np.lexsort((episode_step, episode))[::-1].tolist():
        number = int(episode[index])
        after = float(reward[index]) + gamma * (after if number == following else 0.0)
        following = number
        if complete[index]:
            returns[index] = after
    return returns
