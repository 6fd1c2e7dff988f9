"""A Stable-Baselines3 policy that acts: what it sees of an environment's observations, and what it does then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from rollsight.adapters.sb3.translate import evaluate_actions
from rollsight.arrays import Array
from rollsight.errors import RollsightError
from rollsight.policy import Policy
from rollsight.records import Rows


class Actor:
    """Samples actions of a snapshot's policy for many environments at once.

    Actions are drawn from torch's global stream: seed it around the calls. With gSDE each action has noise of its own,
    where the host holds the noise for some steps: the distribution of each single action is the same.

    Raises `RollsightError` for policies that need more than an observation to act.
    """

    def __init__(self, policy: Policy) -> None:
        module = policy.module
        if not isinstance(module, ActorCriticPolicy) or policy.evaluate is not evaluate_actions:
            raise RollsightError(
                f"The policy is a {type(module).__name__}, which needs more than an observation to act (a mask, a "
                "state of its own): only plain Stable-Baselines3 policies can be rolled out here."
            )
        module.set_training_mode(False)
        self._policy = module
        self.action_space = module.action_space

    def see(self, observations: Sequence[Any]) -> Rows:
        """Environment observations as the policy's input, with leading N: images with channels first, say.

        Raises `RollsightError` where they do not fit the policy.
        """
        try:
            if isinstance(observations[0], dict):
                stacked: Any = {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
            else:
                stacked = np.stack(observations)
            seen, _ = self._policy.obs_to_tensor(stacked)
        except (ValueError, KeyError) as error:
            raise RollsightError(
                "The environment's observations do not fit the policy, which was trained with wrappers that the run "
                f"does not store (frame stacking, say): {error}"
            ) from error
        if (rows := len(next(iter(seen.values())) if isinstance(seen, dict) else seen)) != len(observations):
            raise RollsightError(
                f"The environment's observations do not fit the policy ({len(observations)} of them make {rows} of "
                "its inputs): it was trained with wrappers that the run does not store (frame stacking, say)."
            )
        return seen

    def act(self, seen: Rows) -> Array:
        """One sampled action (N, ...) for each input, as the environment takes it."""
        with torch.no_grad():
            if self._policy.use_sde:
                self._policy.reset_noise(len(next(iter(seen.values())) if isinstance(seen, dict) else seen))
            actions = self._policy.get_distribution(seen).get_actions()  # type: ignore[arg-type]
        return self.executable(actions.cpu().numpy())

    def executable(self, actions: Array) -> Array:
        """Recorded actions (N, ...) as the host gave them to the environment: clipped to the space, or unscaled."""
        space = self.action_space
        assert space.shape is not None  # SB3 takes no other spaces
        actions = actions.reshape((-1, *space.shape))
        if not isinstance(space, spaces.Box):
            return actions.astype(np.int64)
        if self._policy.squash_output:
            return np.asarray(self._policy.unscale_action(actions))
        return np.clip(actions, space.low, space.high)
