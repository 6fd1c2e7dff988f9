"""Checks of the data: what is in the buffer that should not be, or is not as it seems."""

from __future__ import annotations

import math

import numpy as np

from rollsight.doctor.check import Check, Measured
from rollsight.doctor.evidence import Array, Evidence
from rollsight.doctor.finding import Where

_FEW = 8  # episodes; with fewer nothing is said of them
_NEVER = math.inf


def reset_rows(seen: Evidence) -> Measured | None:
    """Log ratio of two jumps of the observation: from an episode's first row to its second, and to its first from the
    row before. Where resets are rows of their own, the first row still shows the end of the episode before."""
    step, env = seen.column("episode_step"), seen.column("env")
    trained = (step < 0) & seen.column("valid") & seen.column("kept")
    if trained.any():
        rows = np.flatnonzero(trained)
        return Measured(10.0, {"rows": len(rows)}, Where(records=seen.places(rows)))
    obs = seen.observations.astype(np.float64)
    scale = obs.std(0)
    scaled = obs[:, scale > 0] / scale[scale > 0]
    change = np.abs(np.diff(scaled, axis=0)).mean(1) if scaled.shape[1] else np.zeros(len(obs) - 1)
    first = np.flatnonzero(seen.last)[:, None] + [0, 1, 2]  # last row, first of the next episode, its second
    first = first[(first[:, 2] < len(obs) - 1) & seen.followed[np.minimum(first[:, 1], len(obs) - 1)]]
    first = first[step[first[:, 2]] == 1]
    if len(first) < _FEW:
        return None
    usual = float(np.mean(change)) + 1e-9

    def ratio(rows: Array) -> float:
        into, after = change[rows[:, 0]].mean(), change[rows[:, 1]].mean()
        return float(np.log((after + 0.1 * usual) / (into + 0.1 * usual)))

    by_env = {int(e): ratio(first[env[first[:, 0]] == e]) for e in np.unique(env[first[:, 0]])
              if np.count_nonzero(env[first[:, 0]] == e) >= _FEW}  # fmt: skip
    odd = tuple(e for e, value in by_env.items() if value > 0)
    value = max([ratio(first), *(by_env[e] for e in odd)])
    rows = first[:, 1] if not odd or len(odd) == len(by_env) else first[np.isin(env[first[:, 0]], odd), 1]
    return Measured(value, {"rows": len(rows)}, Where(environments=odd, records=seen.places(rows)))


def time_limit_as_end(seen: Evidence) -> Measured | None:
    """Where the longest length is the time limit, the share of the ends there that have no value of what would have
    followed; where it is not known, half the share that such ends are of all."""
    if seen.rescaled:
        return None
    ends = np.flatnonzero(seen.last)
    length = seen.column("episode_step")[ends] + 1
    if len(ends) < 4:
        return None
    longest = int(length.max())
    reward, target = seen.column("reward")[ends], seen.column("return")[ends]
    bare = np.abs(target - reward) <= 1e-4 * np.maximum(1, np.abs(target))
    at_limit = length == longest
    known = seen.metadata.get("max_episode_steps") == longest
    share, of_limit = float((at_limit & bare).mean()), float(bare[at_limit].mean())
    # An unknown limit shows in that every longest episode ends so.
    if np.count_nonzero(at_limit) < 4 or longest < 10 or not (known or of_limit > 0.9):
        return Measured(0.0, {"length": longest, "share": share})
    rows = ends[at_limit & bare]
    where = Where(episodes=tuple(seen.column("episode")[rows[:8]].tolist()), records=seen.places(rows))
    value = of_limit if known else 0.5 * share
    return Measured(value, {"length": longest, "share": share}, where)


def not_finite(seen: Evidence) -> Measured | None:
    """How many rewards, values or advantages are NaN or infinite."""
    bad = np.zeros(len(seen.round), bool)
    for name in ("reward", "value", "advantage", "return", "log_prob"):
        if seen.has(name) and (column := seen.column(name)).dtype.kind == "f":
            bad |= ~np.isfinite(column)
        if name == "reward" and bad.any():
            break  # the others follow from it
    rows = np.flatnonzero(bad)
    rounds = tuple(dict.fromkeys(seen.round[rows].tolist()))
    return Measured(float(len(rows)), {"records": len(rows)}, Where(rounds=rounds, records=seen.places(rows)))


def copies(seen: Evidence) -> Measured | None:
    """The largest share of steps at which two environments show the same, where they acted differently before (or,
    where they always act alike, at all)."""
    env, step, round = seen.column("env"), seen.column("step"), seen.round
    names = np.unique(env)
    if not 2 <= len(names) <= 64:
        return None
    obs, action = seen.observations, seen.column("action")
    action = action.reshape(len(action), -1)
    entropy = float(np.mean(seen.column("entropy"))) if seen.has("entropy") else 1.0
    steps = int(step.max()) + 1
    best, equal_steps = 0.0, 0
    pair: tuple[int, ...] = ()
    together: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for number in np.unique(round)[-6:]:
        rows = np.flatnonzero(round == number)
        if len(rows) != steps * len(names):
            continue
        grid = rows.reshape(len(names), steps)
        for i in range(len(names)):
            for j in range(i + 1, len(names)):
                same = (obs[grid[i]] == obs[grid[j]]).all(1)
                if same.mean() < 0.5:
                    continue
                acted = (action[grid[i]] == action[grid[j]]).all(1)
                counted = np.r_[False, ~acted[:-1]]
                if acted.mean() > 0.99:  # one stream of actions too
                    counted = np.full(steps, entropy > 0.1)
                together.setdefault((i, j), []).append((int((same & counted).sum()), int(counted.sum())))
    copied = set()
    for (i, j), counts in together.items():
        same_steps, all_steps = map(sum, zip(*counts, strict=True))
        share = same_steps / all_steps if all_steps >= 30 else 0.0
        if share > 0.9:
            copied |= {int(names[i]), int(names[j])}
        if share > best:
            best, pair, equal_steps = share, (int(names[i]), int(names[j])), same_steps
    where = tuple(sorted(copied)) or pair
    figures = {"share": best, "steps": equal_steps, "first": where[0] if where else 0, "copies": max(len(where) - 1, 0)}
    return Measured(best, figures, Where(environments=where))


def large_feature(seen: Evidence) -> Measured | None:
    """The largest feature's size over the median one of the others."""
    obs = seen.observations
    if obs.dtype.kind != "f" or obs.shape[1] < 2:
        return None
    size = np.sqrt(np.mean(np.square(obs, dtype=np.float64), axis=0))
    largest = int(size.argmax())
    others = np.delete(size, largest)
    if not (others > 0).any():
        return None
    usual = float(np.median(others[others > 0]))
    value = float(size[largest] / max(usual, 1e-3)) if size[largest] > 10 else 0.0
    return Measured(value, {"feature": largest, "size": float(size[largest]), "usual": usual},
                    Where(features=(largest,)))  # fmt: skip


def no_episode_ends(seen: Evidence) -> Measured | None:
    """Share of the rounds in which no episode ends."""
    ends = seen.summary("episodes_terminated") + seen.summary("episodes_truncated")
    steps = float(seen.column("step").max() + 1)
    none = ends == 0
    return Measured(float(none.mean()), {"share": float(none.mean()), "steps": steps},
                    Where(rounds=tuple(seen.rounds[none][:8].tolist())))  # fmt: skip


CHECKS = (
    Check(
        "not_finite", "data", not_finite, 1, 1, "certain",
        "{records:.0f} records have a reward, value or advantage that is NaN or infinite.",
        ("a division by zero or an overflow in the reward", "a simulator that broke down", "a diverged network"),
        ("look at the first of these records", "check the reward function for divisions and logarithms",
         "end the episode where the simulator breaks down"),
    ),
    Check(
        "reset_rows", "data", reset_rows, 0.5, 1.0, "likely",
        "The first row of an episode still shows the end of the one before: {rows:.0f} rows of resets are trained on.",
        ("a vector of environments that resets in the next step (gymnasium's and EnvPool's default) under a host that "
         "expects resets in the same step",),
        ("give the vector autoreset_mode=SAME_STEP", "leave these rows out of the buffer"),
    ),
    Check(
        "time_limit_as_end", "data", time_limit_as_end, 0.4, 0.6, "likely",
        "{share:.0%} of the episodes end at exactly {length:.0f} steps, what would have followed counts as nothing.",
        ("the time limit is told as `terminated`, not as `truncated`",
         "`done` alone is handed on, without `TimeLimit.truncated`"),
        ("return truncated=True at the time limit", "wrap with gymnasium's TimeLimit",
         "where the limit is part of the task, show the time left in the observation"),
    ),
    Check(
        "copies", "data", copies, 0.9, 0.95, "certain",
        "Environments show the same at {share:.0%} of the steps but acted differently: {copies:.0f} are copies.",
        ("one environment object in the list several times", "equal seeds for all environments",
         "a wrapper that mixes up rows"),
        ("make each environment anew, with a seed of its own", "compare the observations of two environments"),
    ),
    Check(
        "large_feature", "data", large_feature, 30, 60, "likely",
        "Feature {feature:.0f} of the observation is {size:.3g} in size and the median feature {usual:.3g}.",
        ("a feature in other units than the rest", "a counter or a position without bounds"),
        ("normalise observations (VecNormalize, or fixed scales)", "divide this feature by its range"),
    ),
    Check(
        "no_episode_ends", "data", no_episode_ends, 0.8, _NEVER, "certain",
        "In {share:.0%} of the rounds no episode ends: a round of {steps:.0f} steps for each environment is shorter "
        "than they are.",
        ("n_steps is small compared with the episodes",),
        ("raise n_steps, and lower the number of environments", "look whether the advantages rest on the values alone"),
        records=False,
    ),
)  # fmt: skip
