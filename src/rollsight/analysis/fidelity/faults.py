"""Fault injection: corrupt some episodes of a buffer on purpose, and test whether their scores find them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rollsight.arrays import Floats
from rollsight.errors import RollsightError
from rollsight.gae import gae
from rollsight.records import Records
from rollsight.streams import Purpose, stream

_SHARE, _REPEATS = 0.2, 10

Scorer = Callable[[Records], Tensor]  # corrupted records -> (N,) scores


@dataclass(frozen=True)
class Detection:
    """How well low episode totals of a score find the corrupted episodes.

    fault: kind of the planted fault.
    score: name of the score.
    auroc: mean over repeats; 0.5 is chance, 1 perfect.
    error: its standard error over repeats.
    corrupted: number of corrupted episodes.
    episodes: number of all episodes.
    """

    fault: str
    score: str
    auroc: float
    error: float
    corrupted: int
    episodes: int


class Buffer:
    """The records as a grid of environments and steps, so that GAE can be recomputed (Schulman et al. 2016).

    The value after the last step is not in the records; it is recovered from the last advantage.
    Raises `RollsightError` where the records' advantages are not those of (gamma, gae_lambda).
    """

    def __init__(self, records: Records, gamma: float, gae_lambda: float) -> None:
        missing = [n for n in ("env", "step", "episode") if n not in records.ids]
        missing += [n for n in ("rewards", "values") if getattr(records, n) is None]
        if missing:
            raise RollsightError(f"Recomputing advantages needs the columns {', '.join(missing)} in the records.")
        self.records, self._discounts = records, (gamma, gae_lambda)
        ids = {name: records.ids[name].cpu().numpy() for name in ("env", "step", "episode")}
        order = np.lexsort((ids["step"], ids["env"]))
        steps = int(np.bincount(ids["env"]).max())
        if len(order) % steps:
            raise RollsightError(
                "The environments of this buffer have different numbers of steps: not a rollout buffer."
            )
        self._grid = order.reshape(-1, steps)  # (E, T) rows of the records
        self.episode = ids["episode"]
        episode = self.episode[self._grid]
        self._ends = np.ones(episode.T.shape, dtype=bool)  # the last row too: what follows it is in `_bootstrap`
        self._ends[:-1] = (episode[:, 1:] != episode[:, :-1]).T
        self.rewards, self.values = (
            column.double().cpu().numpy() for column in (records.rewards, records.values) if column is not None
        )
        advantages = records.advantages.double().cpu().numpy()
        last = self._grid[:, -1]
        self._bootstrap = advantages[last] - self.rewards[last] + self.values[last]  # gamma V(s_T), or 0 at an end
        wrong = np.abs(self.advantages(self.rewards, self.values) - advantages).max()
        if wrong > 1e-3 * max(float(np.abs(advantages).max()), 1e-6):
            raise RollsightError(
                f"The advantages are not GAE(gamma={gamma}, lambda={gae_lambda}) of these rewards and values (off by "
                f"up to {wrong:.3g}), so faults cannot be injected."
            )

    def advantages(self, rewards: Floats, values: Floats) -> Floats:
        """(N,) GAE of other rewards and values (N,), with the same episodes and the same value after the last step."""
        trained_on = rewards[self._grid].T.copy()
        trained_on[-1] += self._bootstrap
        column, _ = gae(trained_on, values[self._grid].T, self._ends, np.zeros(len(self._grid)), *self._discounts)
        result = np.empty(len(rewards))
        result[self._grid.T] = column
        return result

    def corrupted(self, rewards: Floats, values: Floats) -> Records:
        """The records with advantages and returns of other rewards and values (N,)."""
        like = self.records.advantages
        advantages = torch.from_numpy(self.advantages(rewards, values)).to(like)
        known = torch.from_numpy(values).to(like)
        corrupted_rewards = torch.from_numpy(rewards).to(like)
        return replace(
            self.records, advantages=advantages, returns=advantages + known, values=known, rewards=corrupted_rewards
        )


def detect(
    buffer: Buffer, scorers: Mapping[str, Scorer], env_rewards: Floats, stale: Floats, seed: int
) -> list[Detection]:
    """Corrupt a fifth of the episodes, several times, in two ways, and see who finds them.

    env_rewards: (N,) the rewards as the environment gave them; their sign is flipped in the first fault. (The records'
        rewards may hold the host's time-limit bootstrapping too, which stays.)
    stale: (N,) the value estimates that take the place of the current ones in the second.
    """
    episodes = np.unique(buffer.episode)
    count = max(1, round(_SHARE * len(episodes)))
    if len(episodes) < 5:
        raise RollsightError(f"The round has {len(episodes)} episodes; finding corrupted ones needs at least 5.")
    from sklearn.metrics import roc_auc_score  # here: a second to import

    found: dict[tuple[str, str], list[float]] = {}
    for repeat in range(_REPEATS):
        rng = stream(seed, repeat, Purpose.FAULTS)
        chosen = rng.choice(episodes, count, replace=False)
        hit = np.isin(buffer.episode, chosen)
        faults = {
            "reward sign flipped": buffer.corrupted(buffer.rewards - 2 * env_rewards * hit, buffer.values),
            "stale values": buffer.corrupted(buffer.rewards, np.where(hit, stale, buffer.values)),
        }
        for fault, records in faults.items():
            for name, scorer in scorers.items():
                totals = np.zeros(len(episodes))
                np.add.at(totals, np.searchsorted(episodes, buffer.episode), scorer(records).double().cpu().numpy())
                found.setdefault((fault, name), []).append(float(roc_auc_score(np.isin(episodes, chosen), -totals)))
    return [
        Detection(fault, name, float(np.mean(v)), float(np.std(v, ddof=1) / np.sqrt(len(v))), count, len(episodes))
        for (fault, name), v in found.items()
    ]
