"""Translation: a model with a replay buffer becomes records, one row per transition, with the targets of its update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor

from rollsight.adapters.sb3.streams import streams_of_their_own
from rollsight.adapters.sb3_off_policy.critics import Critic
from rollsight.adapters.sb3_off_policy.transitions import Transitions
from rollsight.arrays import Array, Bools
from rollsight.errors import RollsightError
from rollsight.records import Records, Rows, take_rows
from rollsight.streams import Purpose

_AT_ONCE = 16384  # transitions


@dataclass(frozen=True, eq=False)
class Replay:
    """The transitions of a replay buffer in Rollsight's terms.

    records: one row per transition: row = position * n_envs + env. `values` are Q(s, a), the mean over critics,
        `returns` the targets y that the update would train it towards, `advantages` the TD errors y - Q(s, a). What is
        not finite is not valid. `rewards` are the environment's own. The columns share the buffer's memory where they
        can: they are the buffer's of now.
    terminated: (N,) booleans, whether the target ends with the reward.
    age: (N,) how many steps of its environment ago a transition was stored.
    """

    records: Records
    terminated: Bools
    age: Array


def check_buffer(model: OffPolicyAlgorithm) -> None:
    """`RollsightError` where the buffer does not hand out its transitions as they are stored."""
    buffer = model.replay_buffer
    plain = (ReplayBuffer._get_samples, DictReplayBuffer._get_samples)
    if buffer is None or type(buffer)._get_samples not in plain:
        raise RollsightError(
            f"ReplayInfluenceCallback scores transitions as they are stored, and {type(buffer).__name__} makes others "
            "of them when it is sampled (n-step returns, hindsight goals); use ReplayBuffer or DictReplayBuffer."
        )


def translate(model: OffPolicyAlgorithm, critic: Critic, transitions: Transitions, key: tuple[int, int]) -> Replay:
    """All transitions that the buffer holds. key: (seed, round)."""
    buffer: Any = model.replay_buffer
    size = buffer.buffer_size if buffer.full else buffer.pos
    envs = buffer.n_envs
    newest = (buffer.pos - 1) % buffer.buffer_size
    obs = _observations(model, buffer.observations, slice(0, size))
    actions = torch.as_tensor(buffer.actions[:size].reshape(size * envs, -1), device=model.device)
    if isinstance(model.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    stored_rewards = buffer.rewards[:size].reshape(-1, 1)
    rewards = torch.as_tensor(buffer._normalize_reward(stored_rewards, model.get_vec_normalize_env())).flatten()
    rewards = rewards.to(model.device, torch.float32)
    terminated = ((buffer.dones * (1 - buffer.timeouts))[:size] > 0).reshape(-1)
    with streams_of_their_own(*key, Purpose.TD_TARGETS), torch.no_grad():
        values, returns = _values(model, critic, obs, actions, rewards, torch.from_numpy(terminated), size)
    valid = torch.isfinite(values) & torch.isfinite(returns)
    if buffer.optimize_memory_usage and buffer.full:
        valid.view(size, envs)[buffer.pos] = False  # its next observation was written over its observation
    ids = {
        "round": torch.full((size * envs,), key[-1]),
        "env": torch.arange(envs).repeat(size),
        "step": torch.from_numpy(transitions.step[:size].reshape(-1)),
        "episode": torch.from_numpy(transitions.episode[:size].reshape(-1)),
    }
    records = Records(
        obs,
        actions,
        torch.zeros_like(values),
        returns - values,
        returns=returns,
        values=values,
        rewards=torch.from_numpy(stored_rewards.flatten()).to(model.device),
        ids={name: column.to(model.device) for name, column in ids.items()},
        valid=valid,
    )
    age = np.repeat((newest - np.arange(size)) % buffer.buffer_size, envs)
    return Replay(records, terminated, age)


def _values(
    model: OffPolicyAlgorithm,
    critic: Critic,
    obs: Rows,
    actions: Tensor,
    rewards: Tensor,
    terminated: Tensor,
    size: int,
) -> tuple[Tensor, Tensor]:
    """(N,) Q(s, a), the mean over critics, and (N,) y = r + (1 - terminated) * gamma * V(s')."""
    buffer: Any = model.replay_buffer
    step = max(1, _AT_ONCE // buffer.n_envs)
    values, returns = torch.empty_like(rewards), torch.empty_like(rewards)
    goes_on = (~terminated).to(rewards)
    for start in range(0, size, step):
        positions = slice(start, min(start + step, size))
        rows = slice(positions.start * buffer.n_envs, positions.stop * buffer.n_envs)
        following = critic.next_values(_next_observations(model, positions))
        returns[rows] = rewards[rows] + goes_on[rows] * model.gamma * following
        evaluation = critic.policy.evaluate(critic.policy.module, take_rows(obs, rows), actions[rows])
        assert evaluation.q_values is not None
        values[rows] = evaluation.q_values.mean(1)
    return values, returns


def _next_observations(model: OffPolicyAlgorithm, positions: slice) -> Rows:
    buffer: Any = model.replay_buffer
    if not buffer.optimize_memory_usage:
        return _observations(model, buffer.next_observations, positions)
    following = np.arange(positions.start + 1, positions.stop + 1) % buffer.buffer_size
    return _observations(model, buffer.observations, following)


def _observations(model: OffPolicyAlgorithm, stored: Any, positions: Any) -> Rows:
    """Stored observations (positions, envs, ...) as the networks get them, flattened to rows."""
    buffer: Any = model.replay_buffer

    def rows(column: Array) -> Array:
        part: Array = column[positions]
        return part.reshape(-1, *part.shape[2:])

    flat = {name: rows(column) for name, column in stored.items()} if isinstance(stored, dict) else rows(stored)
    normalized = buffer._normalize_obs(flat, model.get_vec_normalize_env())
    if isinstance(normalized, dict):
        return {name: torch.as_tensor(column, device=model.device) for name, column in normalized.items()}
    return torch.as_tensor(normalized, device=model.device)


def newest(replay: Replay, count: int) -> Records:
    """The transitions that were stored last."""
    order = np.argsort(replay.age, kind="stable")[:count]
    return replay.records.take(torch.from_numpy(np.sort(order)).to(replay.records.log_probs.device))
