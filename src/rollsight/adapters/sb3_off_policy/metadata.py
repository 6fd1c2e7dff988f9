"""What a run folder says about the model with a replay buffer that wrote it."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rollsight.adapters.sb3.metadata import describe_model

_SETTINGS = (
    *("buffer_size", "learning_starts", "batch_size", "tau", "gamma", "gradient_steps", "target_update_interval"),
    *("exploration_fraction", "exploration_initial_eps", "exploration_final_eps", "max_grad_norm", "policy_delay"),
    *("target_policy_noise", "target_noise_clip", "use_sde", "optimize_memory_usage"),
)


def describe(model: OffPolicyAlgorithm, **more: Any) -> dict[str, Any]:
    """Algorithm, environment, seed and settings, as plain values."""
    train_freq: Any = model.train_freq
    further = {"train_freq": f"{train_freq.frequency} {train_freq.unit.value}"}
    described = describe_model(model, _SETTINGS, further, replay_buffer=type(model.replay_buffer).__name__, **more)
    described["units"]["td_error"] = described["units"].pop("advantage")
    return described
