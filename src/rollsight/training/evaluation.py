"""Evaluation between the rounds of training, on random streams of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from rollsight.environments.make import make_environments
from rollsight.streams import Purpose, seed_from

if TYPE_CHECKING:
    from rollsight.training.run import RunSettings


class Evaluation:
    """Evaluates a model's stochastic policy on environments of its own, seeded by (seed, round).

    The callback gives each evaluation random streams of its own, so training does not depend on how long it runs.
    Where training normalises observations, its statistics of the moment are used, and are not changed; returns are the
    environment's own.
    """

    def __init__(self, settings: RunSettings) -> None:
        self._episodes, self._seed = settings.eval_episodes, settings.seed
        self._envs = make_environments(settings.env, min(self._episodes, 10), keywords=settings.env_kwargs)
        if settings.normalize:
            self._envs = VecNormalize(self._envs, training=False, norm_reward=False)

    def __call__(self, model: OnPolicyAlgorithm, round: int) -> tuple[list[float], list[int]]:
        """Returns and lengths of the episodes."""
        if isinstance(self._envs, VecNormalize) and (normalizer := model.get_vec_normalize_env()) is not None:
            self._envs.obs_rms = normalizer.obs_rms
        self._envs.seed(seed_from(self._seed, round, Purpose.EVALUATION) % 2**31)
        returns, lengths = evaluate_policy(
            model, self._envs, self._episodes, deterministic=False, return_episode_rewards=True, warn=False
        )
        assert isinstance(returns, list)
        assert isinstance(lengths, list)
        return returns, lengths

    def close(self) -> None:
        """Close its environments."""
        self._envs.close()
