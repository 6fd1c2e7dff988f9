"""Checks of the value function: does it predict the returns?"""

from __future__ import annotations

import math

import numpy as np

from rollsight.doctor.check import Check, Measured
from rollsight.doctor.evidence import Array, Evidence
from rollsight.doctor.finding import Where

_NEVER = math.inf


def _left(seen: Evidence) -> tuple[Array, Array, Array]:
    """By round: numbers, and what the values leave of the returns' mean square (about 0 and about their mean)."""
    value, target = seen.column("value").astype(np.float64), seen.column("return").astype(np.float64)
    good = seen.column("valid") & np.isfinite(value) & np.isfinite(target)
    rounds = np.unique(seen.round[good])
    left, centred = [], []
    for number in rounds:
        rows = good & (seen.round == number)
        error = np.square(target[rows] - value[rows]).mean()
        left.append(error / max(np.square(target[rows]).mean(), 1e-12))
        centred.append(np.var(target[rows] - value[rows]) / max(np.var(target[rows]), 1e-12))
    return rounds, np.array(left), np.array(centred)


def untrained(seen: Evidence) -> Measured | None:
    """What the values leave of the returns' mean square in the second half, where it has not gone down."""
    rounds, left, centred = _left(seen)
    if len(rounds) < 6:
        return None
    half = len(rounds) // 2
    late, first = float(np.median(left[half:])), float(left[0])
    explained = max(float(1 - np.median(centred[half:])), 0.0)
    # Values that explain nothing of the spread, and are not nearer to the returns' mean than they were.
    value = min(late, 1.0) * float(explained < 0.1) if late > 0.7 * min(first, 1.0) else 0.0
    return Measured(value, {"left": late, "explained": explained}, Where(rounds=tuple(rounds[half:][:4].tolist())))


def diverging(seen: Evidence) -> Measured | None:
    """In the later rounds, the larger of two ratios: variance of the values' errors over that of the returns; size of
    the values over that of what was paid from there on in the buffer, or of the largest reward, as far as the values
    have grown that much since the first round (where hardly anything is paid, untrained values are larger)."""
    rounds, _, centred = _left(seen)
    if len(rounds) < 4:
        return None
    value, sizes = seen.column("value").astype(np.float64), list[float]()
    if seen.rescaled or not seen.has("reward", "env", "step", "episode"):
        size = 0.0
    else:
        paid = _paid(seen)
        largest = float(np.quantile(np.abs(seen.column("reward").astype(np.float64)), 0.999))
        first = _size(value[(seen.round == rounds[0]) & np.isfinite(value)])
        for number in rounds[len(rounds) // 2 :]:
            rows = (seen.round == number) & np.isfinite(value) & np.isfinite(paid)
            reach = max(_size(paid[rows]), largest, 1e-6)
            sizes.append(min(_size(value[rows]) / reach, _size(value[rows]) / max(first, 1e-6)))
        size = float(np.median(sizes))
    times = float(np.median(centred[1:]))
    worst = rounds[1:][np.argsort(centred[1:])[::-1][:4]]
    return Measured(max(times, size), {"times": times, "size": size}, Where(rounds=tuple(sorted(worst.tolist()))))


def _size(values: Array) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _paid(seen: Evidence) -> Array:
    """(N,) the discounted rewards of a record's episode from it on, as far as the buffer goes."""
    reward, gamma = seen.column("reward").astype(np.float64), seen.setting("gamma") or 1.0
    goes_on = np.r_[seen.followed[:-1] & ~seen.last[:-1], False]
    paid = reward.copy()
    for i in range(len(paid) - 2, -1, -1):
        if goes_on[i]:
            paid[i] += gamma * paid[i + 1]
    return paid


def stale(seen: Evidence) -> Measured | None:
    """Share of the returns' mean that the values are behind by, in the second half of the run."""
    value, target = seen.column("value").astype(np.float64), seen.column("return").astype(np.float64)
    rounds = np.unique(seen.round)
    if len(rounds) < 6:
        return None
    behind = []
    for number in rounds[len(rounds) // 2 :]:
        rows = (seen.round == number) & np.isfinite(value) & np.isfinite(target)
        error = target[rows] - value[rows]
        behind.append(np.square(error.mean()) / max(np.square(error).mean(), 1e-12))
    share = float(np.median(behind))
    return Measured(share, {"share": share}, Where(rounds=tuple(rounds[len(rounds) // 2 :][:4].tolist())))


CHECKS = (
    Check(
        "value_untrained", "value_function", untrained, 0.9, 0.97, "likely",
        "The value function explains {explained:.0%} of the spread of the returns and leaves {left:.0%} of their size: "
        "it is not learning.",
        ("vf_coef is 0, or its parameters are not in the optimiser", "its input is detached or constant",
         "a learning rate that is far too low", "returns of a size that it cannot reach"),
        ("check that the value loss falls", "normalise rewards", "raise vf_coef or its learning rate"),
        explained_by=("large_feature", "odd_environment_reward", "reward_scale", "lucky_success", "no_signal",
                      "dominated", "rate_too_high", "rate_too_low", "dead_units"),
    ),
    Check(
        "value_stale", "value_function", stale, 0.98, _NEVER, "possible",
        "{share:.0%} of the value function's squared error is one offset: it lags behind the returns.",
        ("the value function learns more slowly than the returns change", "returns that are large for its last layer"),
        ("raise vf_coef or its learning rate", "take more epochs", "normalise rewards"),
    ),
    Check(
        "value_diverging", "value_function", diverging, 2.0, 4.0, "likely",
        "Errors of the values vary {times:.2g} times as much as the returns, and values are {size:.2g} times what is "
        "paid: they do harm.",
        ("its learning rate is too high", "unnormalised observations or rewards", "bootstrapping from its own errors"),
        ("lower the learning rate or vf_coef", "clip its gradient", "normalise observations and rewards"),
        explained_by=("large_feature", "reward_scale", "lucky_success", "rate_too_high"),
    ),
)  # fmt: skip
