"""Fresh episodes of the present policy with the returns that really came: what a critic is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from torch import Tensor

from rollsight.adapters.sb3.streams import streams_of_their_own
from rollsight.adapters.sb3_off_policy.critics import Critic
from rollsight.arrays import Array, Floats
from rollsight.environments.describe import describe_environments
from rollsight.environments.trained import MakeEnv, TrainedEnvironment
from rollsight.environments.vector import statistics_of
from rollsight.errors import OptionError
from rollsight.records import Records
from rollsight.streams import Purpose, seed_from

_LONGEST = 10_000  # steps of an episode that no time limit ends


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Steps of the present policy in episodes of their own.

    records: M steps in order of their episodes; `returns` are discounted, in the units that the critic is trained in
        and with SAC's entropy terms; `values` Q(s, a), the mean over critics. What a time limit cut off has the value
        of the state in which it was, by the target networks, as in training.
    returns: (E,) undiscounted returns in the environment's own reward.
    lengths: (E,) steps.
    bootstrapped: mean weight of these values in the returns of the M steps, between 0 and 1.
    """

    records: Records
    returns: Floats
    lengths: Array
    bootstrapped: float

    def numbers(self) -> dict[str, float]:
        """Entries of the round's summary."""
        assert self.records.values is not None
        assert self.records.returns is not None
        errors = (self.records.values - self.records.returns).double()
        return {
            "evaluation_return": float(self.returns.mean()),
            "held_out": len(self.records),
            "value_bias": float(errors.mean()),
            "value_rmse": float((errors**2).mean().sqrt()),
            "bootstrapped": self.bootstrapped,
        }


def environment_of(model: OffPolicyAlgorithm, make_env: MakeEnv | None) -> TrainedEnvironment:
    """How to make the environment again that the model is trained in, with what `VecNormalize` has seen by now.

    make_env: makes it instead, inside the same vector wrappers.

    Raises:
        RollsightError: it cannot be made again.
    """
    env = model.get_env()
    assert env is not None
    described = describe_environments(env)
    vector, statistics = tuple(described["vec_wrappers"]), statistics_of(env)
    problem = described.get("problem") if make_env is None else None
    layers = [*vector, *(described["wrappers"] if make_env is None and problem is None else ())]
    problem = problem or next((str(layer["problem"]) for layer in layers if "problem" in layer), None)
    if problem is not None:
        raise OptionError(
            f"Held-out episodes are played in an environment of their own, and this one cannot be made again "
            f"({problem}); give a function that makes one, {{make_env}}, or target='bellman', which plays none.",
            make_env=None,
        )
    if make_env is not None:
        return TrainedEnvironment("make_env", None, vector, statistics, make=CloudpickleWrapper(make_env))
    return TrainedEnvironment(str(described["id"]), described, vector, statistics)


def play(
    model: OffPolicyAlgorithm, critic: Critic, made: TrainedEnvironment, episodes: int, key: tuple[int, ...]
) -> HeldOut:
    """Play this many episodes side by side, one in each of as many environments. key: of their random stream."""
    envs = made.vectorised(episodes)
    key = *key, Purpose.EVALUATION
    try:
        with streams_of_their_own(*key), torch.no_grad():
            envs.seed(seed_from(*key) % 2**31)
            return _play(model, critic, envs)
    finally:
        envs.close()


def _play(model: OffPolicyAlgorithm, critic: Critic, envs: VecEnv) -> HeldOut:
    buffer: Any = model.replay_buffer
    normalizer = unwrap_vec_normalize(envs)
    count = envs.num_envs
    length, total = np.zeros(count, np.int64), np.zeros(count)
    bootstrap, cut = torch.zeros(count), np.zeros(count, np.bool_)
    going = np.ones(count, np.bool_)
    steps: list[tuple[Any, Tensor, Tensor, Tensor]] = []
    obs: Any = envs.reset()
    while going.any():
        seen, _ = model.policy.obs_to_tensor(obs)
        actions, lowered = critic.act(seen)
        obs, rewards, dones, infos = envs.step(_executable(model, actions))
        steps.append((seen, actions, torch.from_numpy(rewards.astype(np.float32)), lowered.cpu()))
        own = rewards if normalizer is None else normalizer.get_original_reward()
        total[going] += own[going]
        length[going] += 1
        stopped = going & (dones | (length >= _LONGEST))
        for env in np.flatnonzero(stopped).tolist():
            limit = bool(infos[env].get("TimeLimit.truncated")) and buffer.handle_timeout_termination
            if limit or not dones[env]:
                last = infos[env]["terminal_observation"] if dones[env] else _row(obs, env)
                bootstrap[env] = critic.next_values(model.policy.obs_to_tensor(last)[0]).cpu()[0]
                cut[env] = True
        going &= ~stopped
    return _held_out(model, critic, steps, length, total, bootstrap, cut)


def _held_out(
    model: OffPolicyAlgorithm,
    critic: Critic,
    steps: Sequence[tuple[Any, Tensor, Tensor, Tensor]],
    length: Array,
    total: Floats,
    bootstrap: Tensor,
    cut: Array,
) -> HeldOut:
    time, count = len(steps), len(length)
    rewards, lowered = (torch.stack([step[k] for step in steps]).double() for k in (2, 3))
    inside = torch.arange(time)[:, None] < torch.from_numpy(length)
    last = torch.arange(time)[:, None] == torch.from_numpy(length) - 1
    returns, weight = torch.zeros(time, count, dtype=torch.float64), torch.zeros(time, count, dtype=torch.float64)
    following, share = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for t in reversed(range(time)):
        following = torch.where(last[t], bootstrap.double(), following)
        share = torch.where(last[t], torch.from_numpy(cut).double(), share)
        returns[t] = rewards[t] + model.gamma * following
        weight[t] = model.gamma * share
        following, share = returns[t] - lowered[t], weight[t]
    rows = inside.T.reshape(-1)  # episode by episode

    def column(parts: Sequence[Tensor]) -> Tensor:
        whole = torch.stack(list(parts), 1).flatten(0, 1)
        return whole[rows.to(whole.device)]

    first = steps[0][0]
    if isinstance(first, dict):
        obs: Any = {name: column([step[0][name] for step in steps]) for name in first}
    else:
        obs = column([step[0] for step in steps])
    actions = column([step[1] for step in steps])
    held = returns.T.reshape(-1)[rows].float().to(model.device)
    records = Records(
        obs,
        actions,
        torch.zeros_like(held),
        torch.zeros_like(held),
        returns=held,
        ids={"episode": torch.arange(count).repeat_interleave(torch.from_numpy(length))},
    )
    records = replace(records, values=critic.values(records))
    return HeldOut(records, total, length, float(weight.T.reshape(-1)[rows].mean()))


def _executable(model: OffPolicyAlgorithm, actions: Tensor) -> Array:
    numbers = actions.cpu().numpy()
    if isinstance(model.action_space, spaces.Box):
        return model.policy.unscale_action(numbers.reshape(-1, *model.action_space.shape))
    return numbers


def _row(obs: Any, env: int) -> Any:
    return {name: part[env] for name, part in obs.items()} if isinstance(obs, dict) else obs[env]
