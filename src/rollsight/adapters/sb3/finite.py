"""Numbers of a rollout that are not finite: which, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rollsight.arrays import Array
from rollsight.runs.episodes import RoundEpisodes


@dataclass(frozen=True, eq=False)
class NotFinite:
    """Numbers of a rollout that are NaN or infinite.

    text: the first such number, as a sentence.
    finite: (n_steps, n_envs) the steps that have none.
    """

    text: str
    finite: Array


def not_finite(buffer: Any, episodes: RoundEpisodes) -> NotFinite | None:
    """What is NaN or infinite in a full buffer; None where all is finite.

    Causes come before what follows from them: a reward makes every advantage before it in its episode NaN.
    """
    columns = {
        "reward": episodes.reward,
        "reward as trained on": buffer.rewards,
        "value": buffer.values,
        "log-probability": buffer.log_probs,
        "advantage": buffer.advantages,
        "return": buffer.returns,
    }
    finite = {name: np.isfinite(column) for name, column in columns.items()}
    name = next((name for name, good in finite.items() if not good.all()), None)
    if name is None:
        return None
    bad = np.argwhere(~finite[name])
    step, env = bad[0].tolist()
    number = float(columns[name][step, env])
    more = f" ({len(bad)} in all)" if len(bad) > 1 else ""
    of_episode = f"step {int(episodes.episode_step[step, env])} of its episode {int(episodes.episode[step, env])}"
    text = f"the {name} at step {step} of environment {env} is {number}{more}, {of_episode}"
    return NotFinite(text, np.logical_and.reduce(list(finite.values())))
