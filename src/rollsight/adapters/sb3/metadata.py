"""What a run folder says about the model that wrote it."""

from __future__ import annotations

from typing import Any

import stable_baselines3
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

_SETTINGS = (
    "n_steps",
    "batch_size",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "ent_coef",
    "vf_coef",
    "max_grad_norm",
    "target_kl",
    "normalize_advantage",
    "use_sde",
)


def describe(model: OnPolicyAlgorithm, **more: Any) -> dict[str, Any]:
    """Algorithm, environment, seed and hyper-parameters, as plain values."""
    env = model.get_env()
    assert env is not None
    spec = env.get_attr("spec")[0] if env.has_attr("spec") else None
    optimizer = model.policy.optimizer
    settings = {name: getattr(model, name) for name in _SETTINGS if hasattr(model, name)}
    if callable(clip := getattr(model, "clip_range", None)):
        settings["clip_range"] = float(clip(1.0))
    return {
        "host": f"stable-baselines3 {stable_baselines3.__version__}",
        "algo": type(model).__name__.lower(),
        "policy": type(model.policy).__name__,
        "env": None if spec is None else spec.id,
        "env_kwargs": None if spec is None else dict(spec.kwargs),
        "max_episode_steps": None if spec is None else spec.max_episode_steps,
        "env_wrappers": _wrappers(env),
        "n_envs": env.num_envs,
        "observation_space": str(model.observation_space),
        "action_space": str(model.action_space),
        "parameters": {n: "x".join(map(str, p.shape)) or "1" for n, p in model.policy.named_parameters()},
        "timesteps_before": model.num_timesteps,
        "seed": model.seed,
        "optimizer": type(optimizer).__name__,
        "learning_rate": float(model.lr_schedule(1.0)),
        "settings": settings,
        **{name: value if isinstance(value, (list, int, type(None))) else str(value) for name, value in more.items()},
    }


def _wrappers(env: VecEnv) -> list[str]:
    """Class names of the wrappers around the vectorised environment, the outermost first."""
    names = []
    while isinstance(env, VecEnvWrapper):
        names.append(type(env).__name__)
        env = env.venv
    return names
