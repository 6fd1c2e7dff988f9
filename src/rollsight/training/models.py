"""The untrained Stable-Baselines3 model of a run, whichever engine trains it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from rollsight.environments.make import observations_of
from rollsight.errors import RollsightError
from rollsight.training.networks import MiniGridFeatures

if TYPE_CHECKING:
    from rollsight.training.run import RunSettings

_OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, float]]] = {
    "sgd": (torch.optim.SGD, {}),
    "adam": (torch.optim.Adam, {"eps": 1e-5}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.99, "eps": 1e-5}),
}


def model_of(settings: RunSettings, environments: VecEnv) -> OnPolicyAlgorithm:
    """An untrained model for resolved settings.

    Raises:
        RollsightError: the environment's spaces are not ones that the algorithm's policies take.
    """
    observations = observations_of(settings.env)
    optimizer, keywords = _OPTIMIZERS[str(settings.optimizer)]
    policy: dict[str, Any] = {"optimizer_class": optimizer, "optimizer_kwargs": dict(keywords)}
    if observations == "minigrid":
        # MiniGrid's "image" holds object, colour and state numbers up to 10, not intensities to divide by 255.
        policy |= {"features_extractor_class": MiniGridFeatures, "normalize_images": False, "net_arch": []}
    if settings.hidden_layers is not None:
        policy |= {"net_arch": settings.hidden_layers}
    common: dict[str, Any] = {
        "policy": "MlpPolicy" if observations == "vector" else "CnnPolicy",
        "env": environments,
        "learning_rate": settings.lr,
        "n_steps": settings.n_steps,
        "gamma": settings.gamma,
        "gae_lambda": settings.gae_lambda,
        "ent_coef": settings.ent_coef,
        "vf_coef": settings.vf_coef,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "device": "cpu",
        "policy_kwargs": policy,
    }
    try:
        if settings.algo == "a2c":
            return A2C(**common)
        of_ppo: dict[str, Any] = {
            "batch_size": settings.batch_size,
            "n_epochs": settings.epochs,
            "clip_range": settings.clip,
        }
        return PPO(**of_ppo, **common)
    except (AssertionError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise RollsightError(
            f"Stable-Baselines3 cannot train {settings.algo.upper()} in {settings.env} ({reason}): choose another "
            "environment, or wrap this one"
        ) from error
