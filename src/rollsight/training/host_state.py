"""The state of a Stable-Baselines3 training between two rounds: kept in a checkpoint, and put back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from rollsight import runs
from rollsight.adapters.sb3.episodes import EpisodeTracker
from rollsight.arrays import Array
from rollsight.environments.episode_start import START
from rollsight.streams import Purpose, seed_from
from rollsight.training.restoring import History


def state_of(model: OnPolicyAlgorithm, tracker: EpisodeTracker | None) -> dict[str, Any]:
    """All that the next round depends on, as tensors and plain values."""
    steps = _stepped(model)
    last_obs, begins = model._last_obs, model._last_episode_starts
    assert isinstance(last_obs, np.ndarray)
    assert begins is not None
    state: dict[str, Any] = {
        "timesteps": model.num_timesteps,
        "updates": model._n_updates,
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "streams": _streams(),
        "tracker": None if tracker is None else tracker.state(),
        "last_obs": torch.from_numpy(last_obs.copy()),
        "begins": [bool(begin) for begin in begins],
        "starts": [info.get(START) for info in steps.reset_infos],
        "shown": torch.from_numpy(_shown(steps).copy()),
    }
    if (normalizer := model.get_vec_normalize_env()) is not None:
        state["normalizer"] = {
            "returns": torch.from_numpy(normalizer.returns.copy()),
            "obs": _moments(normalizer.obs_rms),
            "return": _moments(normalizer.ret_rms),
        }
    return state


def restore(model: OnPolicyAlgorithm, state: Mapping[str, Any], run: runs.Run) -> bool:
    """Put the model and its environments where they were; whether the episodes under way could be restored too. If
    not, new ones begin, on random streams of their own. The global streams are left to `restore_streams`."""
    model.num_timesteps, model._n_updates = state["timesteps"], state["updates"]
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    exact = _restore_environments(model, state, run)
    if not exact:
        seed = seed_from(model.seed or 0, state["round"], Purpose.ENVIRONMENTS)
        _stepped(model).seed(seed % 2**31)  # at the reset below
    environments = model.get_env()
    assert environments is not None
    if (normalizer := model.get_vec_normalize_env()) is not None:
        kept = state["normalizer"]
        _put_moments(normalizer.obs_rms, kept["obs"])
        _put_moments(normalizer.ret_rms, kept["return"])
        normalizer.returns = kept["returns"].numpy()
    if exact:
        model._last_obs = state["last_obs"].numpy()
        model._last_episode_starts = np.array(state["begins"])
    else:
        model._last_obs = environments.reset()  # type: ignore[assignment]
        model._last_episode_starts = np.ones(environments.num_envs, dtype=bool)
    return exact


def restore_streams(state: Mapping[str, Any]) -> None:
    """Python's, NumPy's and torch's global random streams, immediately before training goes on."""
    streams = state["streams"]
    version, numbers, gauss = streams["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = streams["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(streams["torch"])


def _streams() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *(_plain(number) for number in rest)],
        "torch": torch.get_rng_state(),
    }


def _plain(number: Any) -> int | float:
    return float(number) if isinstance(number, float) else int(number)


def _restore_environments(model: OnPolicyAlgorithm, state: Mapping[str, Any], run: runs.Run) -> bool:
    steps = _stepped(model)
    shown = History(run, state["round"], state["starts"], state["begins"]).episodes_under_way(steps.envs)
    if shown is None or not np.array_equal(np.stack(shown), state["shown"].numpy(), equal_nan=True):
        return False
    _shown(steps)[:] = np.stack(shown)
    steps.reset_infos = [{START: start} for start in state["starts"]]
    return True


def _shown(steps: DummyVecEnv) -> Array:
    """(E, ...) what the environments show; observations that are not dictionaries have no key."""
    columns: Any = steps.buf_obs
    return columns[None]  # type: ignore[no-any-return]


def _stepped(model: OnPolicyAlgorithm) -> DummyVecEnv:
    """What holds the environments, inside all vector wrappers."""
    environments: VecEnv | None = model.get_env()
    while isinstance(environments, VecEnvWrapper):
        environments = environments.venv
    assert isinstance(environments, DummyVecEnv)
    return environments


def _moments(running: Any) -> dict[str, Any]:
    return {"mean": torch.as_tensor(running.mean), "var": torch.as_tensor(running.var), "count": float(running.count)}


def _put_moments(running: Any, kept: Mapping[str, Any]) -> None:
    running.mean, running.var, running.count = kept["mean"].numpy(), kept["var"].numpy(), kept["count"]
