"""Which episode each step belongs to, and what its environment paid, from round to round: for rows of several
environments side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollsight.arrays import Array


@dataclass(frozen=True, eq=False)
class RoundEpisodes:
    """Columns of one round, each (n_steps, n_envs).

    episode: unique over environments and rounds.
    episode_step: steps since the episode began (or since the tracker first saw it), over rounds.
    reward: as the environment gave it, before VecNormalize and time-limit bootstrapping.
    episode_return: total reward of episodes that ended in this round; nan for others, and where the beginning was not
        seen, as in resumed learning with a new callback.
    start: how the episode began, at its first step, where the environment is wrapped in `EpisodeStart`, else None.
    finished_returns: (E,) the known returns of the episodes that ended in this round.
    terminated, truncated: how many episodes ended in this round, and how; truncated by a time limit and not otherwise.
    """

    episode: Array
    episode_step: Array
    reward: Array
    episode_return: Array
    start: np.ndarray[Any, np.dtype[np.object_]]
    finished_returns: Array
    terminated: int
    truncated: int

    def numbers(self) -> dict[str, Any]:
        """Entries of the round's summary."""
        returns, known = self.finished_returns, ~np.isnan(self.episode_return)
        last = np.ones_like(known)
        last[:-1] = self.episode[1:] != self.episode[:-1]
        lengths = self.episode_step[last & known] + 1
        with np.errstate(invalid="ignore"):  # of rewards that are not finite
            spread = float(returns.std()) if len(returns) else None
        return {
            "episodes": len(returns),
            "return_mean": float(returns.mean()) if len(returns) else None,
            "return_std": spread,
            "episode_length_mean": float(lengths.mean()) if len(lengths) else None,
            "episodes_terminated": self.terminated,
            "episodes_truncated": self.truncated,
        }


class EpisodeTracker:
    """Follows the episodes of all environments from round to round."""

    def __init__(self, first_episode: int = 0) -> None:
        self._next = first_episode
        self._episode: Array | None = None
        self._age: Array = np.empty(0, dtype=np.int64)
        self._total: Array = np.empty(0)

    def begin(self, envs: int) -> None:
        """Unfinished episodes of which this tracker did not see every step (an earlier `learn` without it, a rollout
        that was broken off) get numbers of their own."""
        self._episode = np.arange(self._next, self._next + envs)
        self._next += envs
        self._age, self._total = np.full(envs, -1), np.full(envs, np.nan)

    def state(self) -> dict[str, Any]:
        """Where it stands between two rounds, as plain values."""
        assert self._episode is not None
        columns = {"episode": self._episode, "age": self._age, "total": self._total}
        return {"next": self._next, **{name: column.tolist() for name, column in columns.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._next, self._episode = state["next"], np.array(state["episode"])
        self._age, self._total = np.array(state["age"]), np.array(state["total"], dtype=np.float64)

    def of_round(
        self, begins: Any, last_dones: Any, reward: Array, starts: Iterable[tuple[int, int, Any]], truncated: int
    ) -> RoundEpisodes:
        """Columns of a round whose steps were noted elsewhere.

        begins: (n_steps, n_envs) booleans, where episodes begin; last_dones: (n_envs,) where the last step ended one.
        reward: (n_steps, n_envs) as the environment gave it; starts: (step, environment, how its episode began).
        truncated: how many of the episodes that ended did so by a time limit.
        """
        assert self._episode is not None
        steps, envs = begins.shape
        numbers = self._next - 1 + np.cumsum(begins.ravel()).reshape(begins.shape)
        clock = np.arange(steps)[:, None]
        last = np.maximum.accumulate(np.where(begins, clock, -1), axis=0)
        column = np.arange(envs)
        episode = np.where(last >= 0, numbers[last, column], self._episode)
        age = np.where(last >= 0, clock - last, self._age + 1 + clock)

        units, position = np.unique(episode.ravel(), return_inverse=True)
        totals: Array = np.bincount(position, weights=reward.ravel()).astype(np.float64)
        for number, total in zip(self._episode, self._total, strict=True):
            totals[units == number] += total
        open_at_end = episode[-1][~np.asarray(last_dones, dtype=bool)]
        finished = ~np.isin(units, open_at_end)
        per_step = np.where(finished[position], totals[position], np.nan).reshape(episode.shape)

        start = np.full(begins.shape, None, dtype=object)
        for t, env, how in starts:
            if t < steps and begins[t, env]:
                start[t, env] = how
        self._next += int(begins.sum())
        self._episode, self._age = episode[-1].copy(), age[-1].copy()
        self._total = totals[np.searchsorted(units, self._episode)]
        ended = int(begins[1:].sum()) + int(np.count_nonzero(last_dones))
        known = totals[finished & ~np.isnan(totals)]
        return RoundEpisodes(episode, age, reward, per_step, start, known, ended - truncated, truncated)


def after_resets(begins: Any, valid: Any, before: Array) -> Array:
    """(n_steps, n_envs) what to take from `episode_step`: 1 in episodes whose first row only resets, so that this row
    is their step -1; else 0.

    begins, valid: (n_steps, n_envs) booleans, a row that only resets is not valid. before: (n_envs,) the last row of
    this function's last answer, 0 at first.
    """
    steps, envs = begins.shape
    last = np.maximum.accumulate(np.where(begins, np.arange(steps)[:, None], -1), axis=0)
    return np.where(last >= 0, ~valid[last, np.arange(envs)], before).astype(np.int64)
