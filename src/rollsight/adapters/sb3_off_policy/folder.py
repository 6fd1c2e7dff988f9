"""The run folder of a model with a replay buffer: what it says about the model, and how it is continued."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import stable_baselines3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rollsight import runs
from rollsight.adapters.sb3.metadata import describe_env
from rollsight.errors import OptionError

_SETTINGS = (
    *("buffer_size", "learning_starts", "batch_size", "tau", "gamma", "gradient_steps", "target_update_interval"),
    *("exploration_fraction", "exploration_initial_eps", "exploration_final_eps", "max_grad_norm", "policy_delay"),
    *("target_policy_noise", "target_noise_clip", "use_sde", "optimize_memory_usage"),
)
# What the models of one run have in common, whatever their settings are by now.
_IDENTITY = ("algo", "policy", "env", "observation_space", "action_space", "n_envs", "parameters", "seed")


def describe(model: OffPolicyAlgorithm, **more: Any) -> dict[str, Any]:
    """Algorithm, environment, seed and settings, as plain values."""
    env = model.get_env()
    assert env is not None
    settings = {name: getattr(model, name) for name in _SETTINGS if hasattr(model, name)}
    train_freq: Any = model.train_freq
    units = describe_env(env)
    scaled = units["units"].pop("advantage")
    return {
        "host": f"stable-baselines3 {stable_baselines3.__version__}",
        "algo": type(model).__name__.lower(),
        "policy": type(model.policy).__name__,
        **units,
        "units": {**units["units"], "td_error": scaled},
        "n_envs": env.num_envs,
        "observation_space": str(model.observation_space),
        "action_space": str(model.action_space),
        "parameters": {n: "x".join(map(str, p.shape)) or "1" for n, p in model.policy.named_parameters()},
        "seed": model.seed,
        "learning_rate": float(model.lr_schedule(1.0)),
        "replay_buffer": type(model.replay_buffer).__name__,
        "settings": {**settings, "train_freq": f"{train_freq.frequency} {train_freq.unit.value}"},
        **{name: value if isinstance(value, (list, int, type(None))) else str(value) for name, value in more.items()},
    }


def open_run(
    path: Path, model: OffPolicyAlgorithm, described: Mapping[str, Any], more: Mapping[str, Any], overwrite: bool
) -> tuple[runs.RunWriter, int]:
    """The run in `path` and its last round that the model holds: continued if the model is and the run is the model's,
    else made anew.

    Raises:
        RollsightError: there is a run already, and it is not to be overwritten.
    """
    if model.num_timesteps > 0 and runs.is_run(path):
        run = runs.open(path)
        here = runs.jsonable(described)
        wrong = next((name for name in _IDENTITY if run.metadata.get(name) != here[name]), None)
        if wrong is None:
            rows = run.rows("rounds", ["round", "updates"]).to_pylist()
            last = max((row["round"] for row in rows if row["updates"] <= model._n_updates), default=0)
            return runs.resume(path, after=last, timesteps=model.num_timesteps), last
        if not overwrite:
            raise OptionError(
                f"the run {path} is another model's ({wrong} differs): continue a model of that run, choose another "
                "place, or replace the run with {overwrite}",
                overwrite=True,
            )
    return runs.create(path, {**described, **more}, overwrite=overwrite), 0
