"""Translation: a model with a replay buffer becomes records, one row per transition, with the targets of its update."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from rollsight.records import Records, Rows
from rollsight.scoring.problem import default_chunk_size
from rollsight.streams import Purpose


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
    records = Records(
        obs,
        actions,
        torch.zeros_like(rewards),
        torch.zeros_like(rewards),
        rewards=torch.from_numpy(stored_rewards.flatten()).to(model.device),
    )
    with streams_of_their_own(*key, Purpose.TD_TARGETS), torch.no_grad():
        values = critic.values(records)
        following = _next_values(model, critic, size, default_chunk_size(records))
    returns = rewards + torch.from_numpy(~terminated).to(rewards) * model.gamma * following
    valid = torch.isfinite(values) & torch.isfinite(returns)
    if buffer.optimize_memory_usage and buffer.full:
        valid.view(size, envs)[buffer.pos] = False  # its next observation was written over its observation
    ids = {
        "round": torch.full((size * envs,), key[-1]),
        "env": torch.arange(envs).repeat(size),
        "step": torch.from_numpy(transitions.step[:size].reshape(-1)),
        "episode": torch.from_numpy(transitions.episode[:size].reshape(-1)),
    }
    records = replace(
        records,
        advantages=returns - values,
        returns=returns,
        values=values,
        ids={name: column.to(model.device) for name, column in ids.items()},
        valid=valid,
    )
    age = np.repeat((newest - np.arange(size)) % buffer.buffer_size, envs)
    return Replay(records, terminated, age)


def _next_values(model: OffPolicyAlgorithm, critic: Critic, size: int, at_once: int) -> Tensor:
    """(N,) V(s')."""
    buffer: Any = model.replay_buffer
    step = max(1, at_once // buffer.n_envs)
    starts = range(0, size, step)
    parts = (_next_observations(model, slice(start, min(start + step, size))) for start in starts)
    return torch.cat([critic.next_values(part) for part in parts])


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
