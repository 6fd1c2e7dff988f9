"""Evaluation episodes of the stochastic policy, many environments side by side, on random streams of their own."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from rollsight.training.compiled.acting import Actor, executable
from rollsight.training.compiled.environments import Environments


def play(
    actor: Actor, environments: Environments, episodes: int, rng: np.random.Generator
) -> tuple[list[float], list[int]]:
    """Returns and lengths of `episodes` episodes in new environments, which are closed afterwards.

    An environment that ends an episode begins the next, until that many have begun, and then is stepped no more; all
    episodes that began are counted, as taking the first to finish would favour short ones.
    """
    with closing(environments):
        return _play(actor, environments, episodes, rng)


def side_by_side(episodes: int) -> int:
    """How many environments to play them in."""
    return min(100, episodes)


def _play(
    actor: Actor, environments: Environments, episodes: int, rng: np.random.Generator
) -> tuple[list[float], list[int]]:
    count = environments.count
    returns, lengths = list[float](), list[int]()
    total, length = np.zeros(count), np.zeros(count, dtype=np.int64)
    resetting, playing = np.zeros(count, dtype=bool), np.arange(min(count, episodes))
    obs, begun = environments.reset().obs[playing], len(playing)
    while len(playing):
        noise = actor.noise(rng, _AT_ONCE, count)
        for t in range(_AT_ONCE):
            actions = actor.act(obs, noise[t, : len(playing)])
            outcome = environments.step(executable(actions, environments.action_space), playing)
            obs, counts = outcome.obs, ~resetting[playing]
            total[playing] += np.where(counts, outcome.rewards, 0.0)
            length[playing] += counts
            over = np.logical_or(outcome.terminated, outcome.truncated) & counts
            if environments.resets_next_step:
                resetting[playing] = over
            if not over.any():
                continue
            ended = playing[over]
            returns += total[ended].tolist()
            lengths += length[ended].tolist()
            total[ended], length[ended] = 0.0, 0
            stops = np.flatnonzero(over)[max(0, episodes - begun) :]
            begun += len(ended) - len(stops)
            obs, playing = np.delete(obs, stops, axis=0), np.delete(playing, stops)
            if not len(playing):
                break
    return returns, lengths


_AT_ONCE = 64  # steps whose noise is drawn together
