"""Evaluation episodes of the stochastic policy, many environments side by side, on random streams of their own."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from rollsight.training.classic.acting import Actor, executable
from rollsight.training.classic.environments import Environments


def play(
    actor: Actor, environments: Environments, episodes: int, rng: np.random.Generator
) -> tuple[list[float], list[int]]:
    """Returns and lengths of `episodes` episodes in new environments, which are closed afterwards.

    An environment that ends an episode begins the next, until that many have begun; all of them are counted, as taking
    the first to finish would favour short ones.
    """
    with closing(environments):
        return _play(actor, environments, episodes, rng)


def side_by_side(episodes: int) -> int:
    """How many environments to play them in: more cost less Python a step, fewer idle less while the last ones end."""
    return max(1, min(50, episodes // 4))


def _play(
    actor: Actor, environments: Environments, episodes: int, rng: np.random.Generator
) -> tuple[list[float], list[int]]:
    count = environments.count
    playing = np.arange(count) < episodes
    begun = int(playing.sum())
    total, length = np.zeros(count), np.zeros(count, dtype=np.int64)
    returns, lengths = list[float](), list[int]()
    obs, resetting = environments.reset().obs, np.zeros(count, dtype=bool)
    while playing.any():
        noise = actor.noise(rng, _AT_ONCE, count)
        for t in range(_AT_ONCE):
            outcome = environments.step(executable(actor.act(obs, noise[t]), environments.action_space))
            obs = outcome.obs
            total += np.where(resetting, 0.0, outcome.rewards)
            length += ~resetting
            over = np.logical_or(outcome.terminated, outcome.truncated) & ~resetting
            if over.any():
                for i in np.flatnonzero(over & playing).tolist():
                    returns.append(float(total[i]))
                    lengths.append(int(length[i]))
                    playing[i] = begun < episodes
                    begun += int(playing[i])
                if not playing.any():
                    break
                total[over], length[over] = 0.0, 0
            if environments.resets_next_step:
                resetting = over
    return returns, lengths


_AT_ONCE = 64  # steps whose noise is drawn together
