"""Advantages from repeats inside a buffer, without a critic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollsight.arrays import Array


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
