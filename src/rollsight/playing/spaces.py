"""Whether a policy and an environment fit each other."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecTransposeImage

from rollsight.errors import RollsightError


def check_spaces(policy: Any, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Raise `RollsightError` where the environment shows or takes something else than the policy was trained on.

    policy: with its own two spaces. Bounds of observations are not compared, and images may have their channels last.
    """
    if not _alike(policy.observation_space, observation_space):
        raise RollsightError(
            f"the environment gives {observation_space} and the policy was trained on {policy.observation_space}: the "
            "run's environment was wrapped in a way that its name does not say"
        )
    if policy.action_space != action_space:
        raise RollsightError(
            f"the policy acts in {policy.action_space} and the environment takes {action_space}: the run's environment "
            "was wrapped in a way that its name does not say"
        )


def _alike(trained: spaces.Space[Any], given: spaces.Space[Any]) -> bool:
    if isinstance(trained, spaces.Dict) and isinstance(given, spaces.Dict):
        return trained.keys() == given.keys() and all(_alike(trained[key], given[key]) for key in trained)
    if isinstance(trained, spaces.Box) and isinstance(given, spaces.Box):
        if trained.shape == given.shape:
            return True
        return is_image_space(given) and trained.shape == VecTransposeImage.transpose_space(given).shape
    return bool(trained == given)
