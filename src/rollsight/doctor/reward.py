"""Checks of the reward: its size, its time, and whether it was earned."""

from __future__ import annotations

import math

import numpy as np

from rollsight.doctor.check import Check, Measured
from rollsight.doctor.evidence import Array, Evidence
from rollsight.doctor.finding import Where

_NEVER = math.inf
_FITTED = 6000  # rows of a regression


def reward_scale(seen: Evidence) -> Measured | None:
    """How many powers of ten the returns that the value function learns are away from 10, or rewards from 1 below."""
    target, reward = seen.column("return").astype(np.float64), seen.column("reward").astype(np.float64)
    target, reward = target[np.isfinite(target)], reward[np.isfinite(reward)]
    paid = np.abs(reward[reward != 0])
    if not len(target) or not len(paid):
        return None
    size, largest = float(np.sqrt(np.square(target).mean())), float(np.quantile(paid, 0.99))
    high = math.log10(max(size, 1e-9)) - 1
    low = -math.log10(max(largest, 1e-9)) if not seen.rescaled else 0.0
    value = max(high, low)
    return Measured(value, {"size": size, "reward": largest})


def late_reward(seen: Evidence) -> Measured | None:
    """How much better a transition some steps earlier explains the reward than its own: difference of R squared."""
    reward, obs = seen.column("reward").astype(np.float64), seen.observations.astype(np.float64)
    step, action = seen.column("episode_step"), seen.column("action")
    if not np.isfinite(reward).all() or obs.shape[1] > 64:
        return None
    if seen.discrete:
        acted = (action[:, None] == np.unique(action)[None, :40]).astype(np.float64)
    else:
        acted = action.reshape(len(action), -1).astype(np.float64)
        acted = np.concatenate([acted, np.square(acted)], 1)
        if seen.bounds is not None:
            inside = action.reshape(len(action), -1).clip(*seen.bounds)
            acted = np.concatenate([acted, inside, np.square(inside)], 1)
    deep = 3
    # A row and the three before it are of one episode, and so is the one after it.
    fit = np.arange(deep, len(reward) - 1)
    whole = np.ones(len(fit), bool)
    for back in range(deep):
        whole &= seen.followed[fit - 1 - back] & (seen.column("episode")[fit - 1 - back] == seen.column("episode")[fit])
    whole &= seen.followed[fit] & ~seen.last[fit]
    fit = fit[whole & (step[fit] >= deep)]
    if len(fit) < 300 or float(reward[fit].std()) == 0:
        return _first_rewards(seen, step, reward)
    if len(fit) > _FITTED:
        fit = fit[np.linspace(0, len(fit) - 1, _FITTED).astype(int)]
    explained = [_explained(_inputs(obs, acted, fit - back), reward[fit]) for back in range(deep + 1)]
    back = int(np.argmax(explained))
    value = explained[back] - explained[0]
    return Measured(value, {"own": explained[0], "earlier": explained[back], "steps": back})


def _first_rewards(seen: Evidence, step: Array, reward: Array) -> Measured | None:
    """1 where rewards are otherwise all alike and the first ones of every episode are 0."""
    first = (step == 0) & np.r_[False, seen.last[:-1]]
    late = reward[(step >= 4) & ~seen.last]
    if first.sum() < 8 or not len(late) or np.ptp(late) > 0 or late[0] == 0:
        return None
    delay = 0
    while delay < 4 and not reward[(step == delay) & ~seen.last].any():
        delay += 1
    return Measured(float(delay > 0), {"own": 0.0, "earlier": float(delay > 0), "steps": delay})


def _inputs(obs: Array, acted: Array, rows: Array) -> Array:
    here, after = obs[rows], obs[rows + 1]
    return np.concatenate([acted[rows], here, after, np.square(here), np.square(after), here * after], 1)


def _explained(inputs: Array, output: Array) -> float:
    """R squared of a ridge regression on one half of the rows, on the other."""
    scale = inputs.std(0)
    inputs = (inputs[:, scale > 0] - inputs[:, scale > 0].mean(0)) / scale[scale > 0]
    output = output - output.mean()
    fit, held = slice(0, None, 2), slice(1, None, 2)
    gram = inputs[fit].T @ inputs[fit] + 1e-2 * len(inputs) / 2 * 1e-2 * np.eye(inputs.shape[1])
    slope = np.linalg.solve(gram, inputs[fit].T @ output[fit])
    left = np.square(output[held] - inputs[held] @ slope).sum()
    return float(max(1 - left / max(np.square(output[held] - output[held].mean()).sum(), 1e-12), 0.0))


def lucky_success(seen: Evidence) -> Measured | None:
    """How near to the longest length the few better episodes end, where they stay few."""
    ends = np.flatnonzero(seen.last)
    returns = seen.column("episode_return")[ends].astype(np.float64)
    length = (seen.column("episode_step")[ends] + 1)[np.isfinite(returns)]
    rows, returns = ends[np.isfinite(returns)], returns[np.isfinite(returns)]
    if len(returns) < 50:
        return None
    values, counts = np.unique(returns, return_counts=True)
    usual, share = values[counts.argmax()], counts.max() / len(returns)
    better = returns > usual
    if share < 0.8 or not better.any() or better.mean() > 0.1:
        return Measured(0.0, {"share": float(better.mean()), "length": 0.0, "limit": float(length.max())})
    rounds = seen.round[rows]
    late = better[rounds > np.median(rounds)].mean()
    if late > 3 * max(better[rounds <= np.median(rounds)].mean(), 1 / len(returns)):
        return Measured(0.0, {"share": float(better.mean()), "length": 0.0, "limit": float(length.max())})
    value = float(np.median(length[better]) / length.max())
    figures = {"share": float(better.mean()), "length": float(np.median(length[better])), "limit": float(length.max())}
    where = Where(episodes=tuple(seen.column("episode")[rows[better]][:8].tolist()),
                  records=seen.places(rows[better]))  # fmt: skip
    return Measured(value, figures, where)


CHECKS = (
    Check(
        "reward_scale", "reward", reward_scale, 1.75, 2.5, "likely",
        "Returns that the value function learns are {size:.3g} in size, single rewards up to {reward:.3g}.",
        ("rewards in other units than the optimiser's settings were made for",),
        ("normalise rewards (VecNormalize), or divide them so that returns are about 1 to 10",),
    ),
    Check(
        "late_reward", "reward", late_reward, 0.2, 0.3, "likely",
        "The transition {steps:.0f} steps earlier explains {earlier:.0%} of the reward's spread, its own {own:.0%}.",
        ("rewards are written one or more steps late", "an observation and a reward of different steps are paired"),
        ("write down one episode by hand and compare", "look for an index off by one, or a queue, in the wrapper"),
    ),
    Check(
        "lucky_success", "reward", lucky_success, 0.7, _NEVER, "possible",
        "{share:.1%} of the episodes are better than the rest, and these end after {length:.0f} of at most {limit:.0f} "
        "steps: successes come by chance, just before the limit.",
        ("a time limit that leaves hardly any time to succeed", "exploration that reaches the goal by chance only"),
        ("raise the time limit", "shape the reward", "begin nearer to the goal"),
    ),
)  # fmt: skip
