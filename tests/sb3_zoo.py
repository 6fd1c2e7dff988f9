"""Small environments and models of every kind that Stable-Baselines3 trains, for the tests of its adapter."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.adapters.sb3.translate import Translated
from rollsight.records import Records

OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1, 1, (3,)),
    "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),  # channels last: the host wraps it in VecTransposeImage
    "dict": spaces.Dict({"obs": spaces.Box(-1, 1, (2,)), "kind": spaces.Discrete(3)}),
    "dict_image": spaces.Dict({"picture": spaces.Box(0, 255, (36, 36, 1), np.uint8), "speed": spaces.Box(-1, 1, (2,))}),
    "discrete": spaces.Discrete(5),
    "multidiscrete": spaces.MultiDiscrete([3, 4]),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
    "multibinary": spaces.MultiBinary(3),
    "box": spaces.Box(-1, 1, (2,)),
}
_ALGORITHMS = {
    "PPO": stable_baselines3.PPO,
    "A2C": stable_baselines3.A2C,
    "TRPO": sb3_contrib.TRPO,
    "MaskablePPO": sb3_contrib.MaskablePPO,
    "RecurrentPPO": sb3_contrib.RecurrentPPO,
}


class Toy(gym.Env[Any, Any]):
    """Observations drawn at random; the reward depends on both observation and action; episodes of 1 to 9 steps."""

    def __init__(self, obs: str = "box", action: str = "discrete") -> None:
        self.observation_space, self.action_space = OBSERVATIONS[obs], ACTIONS[action]
        self._state = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(np.sum(action) * (self._state - 2) + self.np_random.normal())
        return self._observe(), reward, bool(self.np_random.random() < 0.1), False, {}

    def action_masks(self) -> np.ndarray[Any, Any]:
        """Of discrete actions: one forbidden, another in each state."""
        if isinstance(self.action_space, spaces.MultiDiscrete):
            return np.array([True, True, self._state != 0, True, self._state != 1])
        return np.arange(3) != self._state % 3

    def _observe(self) -> Any:
        self._state = int(self.np_random.integers(5))
        return self._draw(self.observation_space)

    def _draw(self, space: spaces.Space[Any]) -> Any:
        if isinstance(space, spaces.Dict):
            return {name: self._draw(part) for name, part in space.items()}
        if isinstance(space, spaces.MultiDiscrete):
            return np.array([self._state % 3, self._state % 4])
        if isinstance(space, spaces.Discrete):
            return self._state % int(space.n)
        assert isinstance(space, spaces.Box)
        if space.dtype == np.uint8:
            return self.np_random.integers(0, 256, space.shape, np.uint8)
        values = self.np_random.uniform(-1, 1, space.shape).astype(np.float32)
        values[0] = (self._state - 2) / 2
        return values


def make_env(obs: str = "box", action: str = "discrete", n_envs: int = 1, normalize: bool = False) -> Any:
    """A vectorised environment of `Toy`s."""
    env: Any = DummyVecEnv([lambda: Monitor(gym.wrappers.TimeLimit(Toy(obs, action), 9))] * n_envs)
    return VecNormalize(env) if normalize else env


def make_model(
    algo: str = "PPO",
    obs: str = "box",
    action: str = "discrete",
    n_envs: int = 1,
    normalize: bool = False,
    env: Any = None,
    **keywords: Any,
) -> Any:
    """A small model: 24 records a round, minibatches of 8, 2 epochs."""
    policy_class = {"image": "Cnn", "dict": "MultiInput", "dict_image": "MultiInput"}.get(obs, "Mlp")
    policy = keywords.pop("policy_kwargs", {})
    policy = {"net_arch": [8], **policy}
    if obs == "image":
        policy = {"features_extractor_kwargs": {"features_dim": 8}, **policy}
    if obs == "dict_image":
        policy = {"features_extractor_kwargs": {"cnn_output_dim": 8}, **policy}
    settings: dict[str, Any] = {"n_steps": 24 // n_envs, "seed": 7, "device": "cpu", "learning_rate": 0.01}
    if algo != "A2C":
        settings["batch_size"] = 8
    if "PPO" in algo and algo != "TRPO":
        settings["n_epochs"] = 2
    if algo == "TRPO":
        settings |= {"n_critic_updates": 2, "cg_max_steps": 4}
    if algo == "RecurrentPPO":
        policy = {"lstm_hidden_size": 6, **policy}
    model = _ALGORITHMS[algo](
        f"{policy_class}LstmPolicy" if algo == "RecurrentPPO" else f"{policy_class}Policy",
        make_env(obs, action, n_envs, normalize) if env is None else env,
        policy_kwargs=policy,
        **{**settings, **keywords},
    )
    model.set_logger(Logger(None, []))  # the default one makes a folder for every training
    return model


def weights(model: Any) -> torch.Tensor:
    """All parameters as one vector."""
    return torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()


def fingerprint(model: Any) -> dict[str, bytes]:
    """All that the rest of a training depends on: parameters, optimiser, the global random states, statistics."""
    normalizer = model.get_vec_normalize_env()
    optimizer = model.policy.optimizer.state_dict()
    return {
        "parameters": weights(model).numpy().tobytes(),
        "optimizer": pickle.dumps(
            [{k: torch.as_tensor(v).numpy().tobytes() for k, v in s.items()} for s in optimizer["state"].values()]
        ),
        "numpy": pickle.dumps(np.random.get_state()),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "statistics": pickle.dumps(None if normalizer is None else (normalizer.ret_rms.mean, normalizer.returns)),
    }


class AtRolloutEnd(BaseCallback):
    """Calls a function with the model whenever a rollout is complete."""

    def __init__(self, call: Callable[[Any], Any]) -> None:
        super().__init__()
        self.call = call
        self.results: list[Any] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.results.append(self.call(self.model))


def with_full_buffer(**settings: Any) -> Any:
    """A model after one round of training, with the next rollout collected and not yet trained on."""
    model = make_model(**settings)
    model.learn(24)
    _, callback = model._setup_learn(24, None, reset_num_timesteps=False)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=model.n_steps)
    return model


def in_double(translated: Translated) -> Translated:
    """The same round in float64: the policy, in place, and whatever floats it is given.

    (The host casts observations to float32 on their way in, which loses nothing: they are float32 numbers.)
    """
    module = translated.policy.module.double()
    for part in {id(p): p for name, p in module.named_modules() if name.endswith("features_extractor")}.values():
        part.register_forward_pre_hook(lambda _, args: tuple(map(_double, args)))
    records, scored = (_double_records(r) for r in (translated.records, translated.scored))
    return replace(translated, records=records, scored=scored)


def _double(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _double(part) for name, part in value.items()}
    return value.double() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value


def _double_records(records: Records) -> Records:
    return replace(records, **{f.name: _double(getattr(records, f.name)) for f in fields(records) if f.name != "ids"})


class Perturb(BaseCallback):
    """Placed after an InfluenceCallback: spoils columns of the buffer in the rows that the selection dropped, or in
    one that it kept.

    by: what is added to floating columns; integers become other valid integers.
    """

    def __init__(self, influence: InfluenceCallback, columns: str, which: str = "dropped", by: float = np.nan) -> None:
        super().__init__()
        self.influence, self.columns, self.which, self.by = influence, columns.split(), which, by
        self.changed = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert self.influence.selection is not None
        keep = self.influence.selection.weights.numpy() > 0
        rows = np.flatnonzero(keep)[:1] if self.which == "kept" else np.flatnonzero(~keep)
        buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
        env, step = np.divmod(rows, buffer.buffer_size)
        for name in self.columns:
            column = getattr(buffer, name)
            for part in column.values() if isinstance(column, dict) else [column]:
                old = part[step, env]
                part[step, env] = old + self.by if part.dtype == np.float32 else old == 0
        self.changed += len(rows)


def noisy_evaluation(model: Any, round: int) -> tuple[list[float], list[int]]:
    """Draws from every global stream, as an evaluation of the stochastic policy does."""
    torch.rand(3)
    return list(np.random.random(2)), [1, 2]


def trained(settings: Mapping[str, Any], callback: Any = None, rounds: int = 2) -> Any:
    return make_model(**settings).learn(rounds * 24, callback=callback)
