"""sb3-contrib: what differs from Stable-Baselines3. MaskablePPO and TRPO need nothing; RecurrentPPO is scored by whole
sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from torch import Tensor, nn

from rollsight.policy import Evaluation
from rollsight.records import Records

_STATES = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")


def sequences(model: Any, records: Records) -> tuple[Records, Tensor]:
    """One row per piece of an episode inside this rollout, padded to the longest, and where each step stands among the
    tokens.

    A step's gradient flows back through the steps of its sequence before it, from the LSTM state stored at the
    sequence's start:
    a record's influence includes that recurrent path.
    """
    buffer = model.rollout_buffer
    steps, envs = buffer.buffer_size, buffer.n_envs
    starts = buffer.episode_starts.T.astype(bool).copy()
    begins_episode = starts.flatten()
    starts[:, 0] = True
    begin = np.flatnonzero(starts.flatten())
    lengths = np.diff(np.append(begin, steps * envs))
    sequence = np.repeat(np.arange(len(begin)), lengths)
    offset = np.arange(steps * envs) - begin[sequence]
    shape = (len(begin), int(lengths.max()))
    position = torch.from_numpy(sequence * shape[1] + offset)

    def padded(column: Tensor) -> Tensor:
        tokens = column.new_zeros((shape[0] * shape[1], *column.shape[1:]))
        tokens[position] = column
        return tokens.view(*shape, *column.shape[1:])

    if isinstance(records.obs, Tensor):
        entries = {"obs": padded(records.obs)}
    else:
        entries = {f"obs.{key}": padded(column) for key, column in records.obs.items()}
    fresh = torch.from_numpy(begins_episode[begin]).view(-1, 1, 1).to(buffer.device)
    for name in _STATES:
        # (n_steps, layers, n_envs, hidden) -> env-major rows -> the state at each sequence's start, zero where an
        # episode begins
        state = getattr(buffer, name).transpose(2, 0, 1, 3).reshape(envs * steps, -1, buffer.hidden_state_shape[3])
        entries[name] = torch.where(fresh, 0.0, buffer.to_torch(state[begin]))
    episode = records.ids.get("episode")
    return (
        Records(
            entries,
            padded(records.actions),  # type: ignore[arg-type]
            padded(records.log_probs),
            padded(records.advantages),
            returns=None if records.returns is None else padded(records.returns),
            values=None if records.values is None else padded(records.values),
            ids={} if episode is None else {"episode": episode[torch.from_numpy(begin)]},
            valid=padded(records.valid),
        ),
        position,
    )


def evaluate_sequences(module: nn.Module, obs: Any, actions: Any) -> Evaluation:
    """RecurrentPPO's evaluation of (N, T) steps, each row a sequence that starts from its stored LSTM states."""
    state = [obs[name].transpose(0, 1).contiguous() for name in _STATES]
    plain = {key.removeprefix("obs."): column.flatten(0, 1) for key, column in obs.items() if key.startswith("obs")}
    observations = plain["obs"] if "obs" in obs else plain
    n, t = actions.shape[:2]
    # The states are zero where an episode begins, so no start flag is needed; without one the LSTM runs in one call.
    no_starts = torch.zeros(n * t, device=actions.device)
    values, log_prob, entropy = module.evaluate_actions(  # type: ignore[operator]
        observations, actions.flatten(0, 1), RNNStates((state[0], state[1]), (state[2], state[3])), no_starts
    )
    return Evaluation(log_prob.view(n, t), None if entropy is None else entropy.view(n, t), values.view(n, t))
