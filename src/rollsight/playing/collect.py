"""New rollouts of a frozen policy, collected by the host's own code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from rollsight.adapters.sb3.translate import evaluate_masked, translate
from rollsight.errors import RollsightError
from rollsight.playing.spaces import check_spaces
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.streams import seed_from


def collect(policy: Policy, envs: VecEnv, steps: int, settings: Mapping[str, Any], key: tuple[int, ...]) -> Records:
    """A rollout buffer of `steps` steps in each of the environments, with the host's advantages and returns.

    settings: the host's `gamma` and `gae_lambda`. key: of the random streams of policy and environments; the global
    ones are left as they were. Raises `RollsightError` where policy and environments do not fit.
    """
    module: Any = policy.module
    algorithm = _algorithm(policy)
    state, seed = np.random.get_state(), seed_from(*key)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        envs.seed(seed % 2**31)
        model = algorithm(
            policy=lambda *_, **__: module,
            env=envs,
            n_steps=steps,
            batch_size=steps * envs.num_envs,
            device="cpu",
            **{name: settings[name] for name in ("gamma", "gae_lambda") if name in settings},
            **({"use_sde": True} if getattr(module, "use_sde", False) else {}),
        )
        check_spaces(module, model.observation_space, model.action_space)
        _, callback = model._setup_learn(steps * envs.num_envs)
        assert model.env is not None
        model.collect_rollouts(model.env, callback, model.rollout_buffer, steps)
        records = translate(model).records
    np.random.set_state(state)
    return records


def _algorithm(policy: Policy) -> Any:
    if policy.evaluate is evaluate_masked:
        from sb3_contrib import MaskablePPO

        return MaskablePPO
    if not hasattr(policy.module, "predict_values"):
        raise RollsightError(
            f"The policy is a {type(policy.module).__name__}; new rollouts are collected for Stable-Baselines3's "
            "policies only."
        )
    collects: type[OnPolicyAlgorithm] = PPO  # A2C collects with the same code
    return collects
