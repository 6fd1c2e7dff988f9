"""What Stable-Baselines3 tells of episodes while it fills its buffer: what each step really paid, and how each episode
started."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnvWrapper

from rollsight.environments.episode_start import START
from rollsight.runs import episodes
from rollsight.runs.episodes import RoundEpisodes


class EpisodeTracker(episodes.EpisodeTracker):
    """Follows the episodes of a model's environments from rollout to rollout."""

    def __init__(self, first_episode: int = 0) -> None:
        super().__init__(first_episode)
        self._rewards: list[Any] = []
        self._truncated = 0
        self._starts: list[tuple[int, int, Any]] = []

    def begin_training(self, model: OnPolicyAlgorithm) -> None:
        """Every environment may just have been reset; what ran before goes on unless `learn` reset it."""
        env = model.get_env()
        assert env is not None
        if self._episode is None or len(self._episode) != env.num_envs or self._rewards:
            self.begin(env.num_envs)
        self._rewards.clear()
        self._truncated = 0
        self._starts = [(0, i, info.get(START)) for i, info in enumerate(_reset_infos(env))]

    def begin_rollout(self, model: OnPolicyAlgorithm) -> None:
        """Steps that no `end_rollout` took up are those of a rollout that was broken off, or not followed."""
        if self._rewards:
            self.begin_training(model)

    def step(self, model: OnPolicyAlgorithm, rewards: Any, dones: Any, infos: Any) -> None:
        """Note one step of all environments."""
        normalizer = model.get_vec_normalize_env()
        # A copy: the host adds the bootstrapped value of time limits to this very array.
        self._rewards.append(
            np.array(rewards if normalizer is None else normalizer.get_original_reward(), dtype=np.float64)
        )
        if dones.any():
            ended = np.flatnonzero(dones).tolist()
            self._truncated += sum(bool(infos[i].get("TimeLimit.truncated")) for i in ended)  # as the host reads it
            resets = _reset_infos(model.get_env())
            self._starts += [(len(self._rewards), i, resets[i].get(START)) for i in ended]

    def end_rollout(self, starts: Any, last_dones: Any) -> RoundEpisodes:
        """Columns of the round. starts: (n_steps, n_envs) the buffer's episode starts; last_dones: (n_envs,)."""
        begins = np.asarray(starts).astype(bool)
        steps = len(begins)
        columns = self.of_round(begins, last_dones, np.stack(self._rewards), self._starts, self._truncated)
        self._starts = [(t - steps, env, how) for t, env, how in self._starts if t >= steps]
        self._rewards.clear()
        self._truncated = 0
        return columns


def _reset_infos(env: Any) -> Any:
    # Wrappers such as VecNormalize and VecTransposeImage have a list of their own, which stays empty.
    count = env.num_envs
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return getattr(env, "reset_infos", [{}] * count)
