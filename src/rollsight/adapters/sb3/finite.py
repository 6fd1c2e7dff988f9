"""Numbers of a rollout that are not finite: which, and where they came from."""

from __future__ import annotations

from typing import Any

import numpy as np

from rollsight.adapters.sb3.episodes import RoundEpisodes


def not_finite(buffer: Any, episodes: RoundEpisodes) -> str | None:
    """The first of a full buffer's numbers that is NaN or infinite, as a sentence; None where all are finite.

    Causes come before what follows from them: a reward makes every advantage before it in its episode NaN.
    """
    columns = {
        "reward": episodes.reward,
        "reward as trained on": buffer.rewards,
        "value": buffer.values,
        "log-probability": buffer.log_probs,
        "advantage": buffer.advantages,
    }
    for name, column in columns.items():
        bad = np.argwhere(~np.isfinite(column))
        if len(bad):
            step, env = bad[0].tolist()
            more = f" ({len(bad)} in all)" if len(bad) > 1 else ""
            return (
                f"the {name} at step {step} of environment {env} is {float(column[step, env])}{more}, step "
                f"{int(episodes.episode_step[step, env])} of its episode {int(episodes.episode[step, env])}"
            )
    return None
