"""Are EnvPool's environments the ones that gymnasium has? Episodes of the same policy in both, and tests.

    python benchmarks/pools.py [--envs ENV...] [--episodes 400] [--json FILE]

Both are stepped as the compiled engine steps them. Returns, lengths and every component of the first observation:
Kolmogorov-Smirnov; the share of episodes that a time limit cuts: Fisher; every component's mean and mean square over an
episode: Welch over episodes, as records of one episode depend on each other. The lowest p-value of a family is
multiplied by its size (Bonferroni), and "different" is said below 0.001. The exit code is 1 where an environment that
EnvPool steps by default is different.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.box2d.lunar_lander import heuristic
from scipy import stats

from rollsight.training.compiled.environments import POOLED, Environments, Stepper, make

STEPPERS: tuple[Stepper, ...] = ("gymnasium", "envpool")
COPIES, LEVEL = 8, 0.001

Array = np.ndarray[Any, Any]
Policy = Callable[[gym.Space[Any], Array, np.random.Generator], Array]


@dataclass(frozen=True, eq=False)
class Episodes:
    """What happened in n episodes. first, mean, square: (n, D) first observation, mean and mean square of all."""

    returns: Array
    lengths: Array
    cut: Array
    first: Array
    mean: Array
    square: Array


def at_random(space: gym.Space[Any], obs: Array, rng: np.random.Generator) -> Array:
    """Uniform actions (E, ...) for observations (E, ...)."""
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(0, int(space.n), len(obs))
    assert isinstance(space, gym.spaces.Box)
    return rng.uniform(space.low, space.high, (len(obs), *space.shape)).astype(np.float32)


def skilled(space: gym.Space[Any], obs: Array, rng: np.random.Generator) -> Array:
    """Gymnasium's own pilot of LunarLander, with one action in ten at random: it lands, which random actions do not."""
    lander: Any = SimpleNamespace(unwrapped=SimpleNamespace(continuous=False))
    chosen = [heuristic(lander, o) for o in obs]
    return np.where(rng.random(len(obs)) < 0.1, at_random(space, obs, rng), chosen)


MORE: dict[str, tuple[Policy, ...]] = {"LunarLander-v3": (skilled,)}


def play(environments: Environments, policy: Policy, episodes: int, rng: np.random.Generator) -> Episodes:
    """An equal share of the episodes in each environment: the first ones to end would be short ones."""
    share, count = -(-episodes // environments.count), environments.count
    seen = environments.reset().obs
    under_way: list[list[tuple[Array, float]]] = [[] for _ in range(count)]
    done: list[list[tuple[Any, ...]]] = [[] for _ in range(count)]
    resetting = np.zeros(count, dtype=bool)
    while min(map(len, done)) < share:
        before = np.array(seen, dtype=float).reshape(count, -1)
        outcome = environments.step(policy(environments.action_space, seen, rng))
        seen, over = outcome.obs, np.logical_or(outcome.terminated, outcome.truncated)
        for i in np.flatnonzero(~resetting):
            under_way[i].append((before[i], float(outcome.rewards[i])))
            if over[i]:
                obs, rewards = np.stack([o for o, _ in under_way[i]]), [r for _, r in under_way[i]]
                cut = not outcome.terminated[i]
                done[i].append((sum(rewards), len(obs), cut, obs[0], obs.mean(0), (obs**2).mean(0)))
                under_way[i] = []
        resetting = over & environments.resets_next_step
    return Episodes(*(np.array(column) for column in zip(*(e for d in done for e in d[:share]), strict=True)))


def lowest(values: list[float]) -> float:
    """Bonferroni over a family; tests that cannot tell (constants that agree) count as p = 1."""
    return min(1.0, len(values) * float(np.min(np.nan_to_num(values, nan=1.0))))


def compare(one: Episodes, other: Episodes) -> dict[str, float]:
    """A p-value for each family."""

    def distributions(a: Array, b: Array) -> list[float]:
        return [stats.ks_2samp(np.round(x, 5), np.round(y, 5)).pvalue for x, y in zip(a.T, b.T, strict=True)]

    def means(a: Array, b: Array) -> list[float]:
        # Constants that differ have no variance to be tested against.
        same = np.isclose(a.mean(0), b.mean(0), rtol=1e-4, atol=1e-6)
        p = stats.ttest_ind(a, b, equal_var=False).pvalue
        return np.where(same, 1.0, np.nan_to_num(p, nan=0.0)).tolist()  # type: ignore[no-any-return]

    cuts = [[int(e.cut.sum()), int((~e.cut).sum())] for e in (one, other)]
    return {
        "return": lowest(distributions(one.returns[:, None], other.returns[:, None])),
        "length": lowest(distributions(one.lengths[:, None], other.lengths[:, None])),
        "cut": float(stats.fisher_exact(cuts).pvalue),
        "first observation": lowest(distributions(one.first, other.first)),
        "observation means": lowest(means(one.mean, other.mean)),
        "observation squares": lowest(means(one.square, other.square)),
    }


def report(env: str, policy: Policy, episodes: int) -> dict[str, Any]:
    seen = {
        stepper: play(make(env, COPIES, (k,), stepper), policy, episodes, np.random.default_rng(k))
        for k, stepper in enumerate(STEPPERS)
    }
    p = compare(*seen.values())
    row: dict[str, Any] = {
        "env": env,
        "policy": policy.__name__.replace("_", " "),
        "p": p,
        "same": min(p.values()) >= LEVEL,
        "observations": {},
    }
    for stepper, e in seen.items():
        row[stepper] = {
            "return": (e.returns.mean(), e.returns.std(ddof=1)),
            "length": (e.lengths.mean(), int(e.lengths.max())),
            "cut": e.cut.mean(),
        }
        spread = np.sqrt(np.maximum(e.square.mean(0) - e.mean.mean(0) ** 2, 0))
        row["observations"][stepper] = {"mean": e.mean.mean(0).tolist(), "sd": spread.tolist()}
    return row


def lines_of(row: dict[str, Any]) -> str:
    """Two rows of the Markdown table."""
    lines = []
    for stepper in STEPPERS:
        found = row[stepper]
        cells = [row["env"], row["policy"], stepper, "{:.3f} ± {:.3f}".format(*found["return"])]
        cells += ["{:.1f} (at most {})".format(*found["length"]), f"{found['cut']:.1%}"]
        if stepper == "envpool":
            cells += [f"{value:.2g}" for value in row["p"].values()] + ["same" if row["same"] else "**different**"]
        else:
            cells += [""] * (len(row["p"]) + 1)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=list(POOLED), metavar="ENV")
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    cases = [(env, policy) for env in given.envs for policy in (at_random, *MORE.get(env, ()))]
    for env, policy in cases:
        rows.append(report(env, policy, given.episodes))
        if len(rows) == 1:
            tests = [f"p {name}" for name in rows[0]["p"]]
            names = ["environment", "policy", "stepper", "return ± sd", "length", "cut", *tests]
            print("| " + " | ".join([*names, "verdict"]) + " |\n" + "|---" * (len(names) + 1) + "|")
        print(lines_of(rows[-1]), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=2, default=float) + "\n", "utf-8")
    return int(any(not row["same"] for row in rows if row["env"] in POOLED))


if __name__ == "__main__":
    sys.exit(main())
