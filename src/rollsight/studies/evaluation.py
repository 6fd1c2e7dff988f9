"""Evaluation between the rounds of training, on random streams of its own."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rollsight.environments.make import make_environments

_EVALUATION = 0xE7A1  # the purpose in the key of the evaluation environments' seed


class Evaluation:
    """Evaluates a model's stochastic policy on environments of its own, seeded by (seed, round).

    The callback gives each evaluation random streams of its own, so training does not depend on how long it runs.
    """

    def __init__(self, env: str, episodes: int, seed: int) -> None:
        self._episodes, self._seed = episodes, seed
        self._envs = make_environments(env, min(episodes, 10))

    def __call__(self, model: OnPolicyAlgorithm, round: int) -> tuple[list[float], list[int]]:
        """Returns and lengths of the episodes."""
        key = np.random.SeedSequence((self._seed, round, _EVALUATION)).generate_state(1)
        self._envs.seed(int(key[0] % 2**31))
        returns, lengths = evaluate_policy(
            model, self._envs, self._episodes, deterministic=False, return_episode_rewards=True, warn=False
        )
        assert isinstance(returns, list)
        assert isinstance(lengths, list)
        return returns, lengths
