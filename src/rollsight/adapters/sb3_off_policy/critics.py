"""What the off-policy algorithms of Stable-Baselines3 train: the critic, its loss, and the update's target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor, nn

from rollsight import objectives
from rollsight.errors import RollsightError
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.scoring.problem import default_chunk_size

Acted = tuple[Tensor, Tensor]
"""Actions (n, ...) as the buffer holds them, and (n,) what the value of acting so is lowered by: SAC's entropy term."""


@dataclass(frozen=True, eq=False)
class Critic:
    """A model's critic.

    policy: the module whose parameters the transitions train, and its `evaluate`.
    objective: the host's loss of it.
    next_values: `next_values(obs)` is (n,) what the update's target takes as the value of these observations: by the
        target networks, and random where the host draws actions or noise.
    act: `act(obs)`, what the policy that the critic is trained to value does: greedy in DQN and TD3, sampled in SAC.
    """

    policy: Policy
    objective: objectives.TD
    next_values: Callable[[Any], Tensor]
    act: Callable[[Any], Acted]

    def values(self, records: Records) -> Tensor:
        """(N,) Q(s, a), the mean over critics."""

        def mean(part: Records) -> Tensor:
            q_values = self.policy(part).q_values
            assert q_values is not None
            return q_values.mean(1)

        return in_parts(mean, records)


def critic_of(model: OffPolicyAlgorithm) -> Critic:
    """The critic of a DQN, SAC, TD3 or DDPG model.

    Raises:
        RollsightError: the model's update is not one of theirs.
    """
    train = type(model).train
    if isinstance(model, DQN) and train is DQN.train:
        return _of_dqn(model)
    if isinstance(model, SAC) and train is SAC.train:
        return _of_sac(model)
    if isinstance(model, TD3) and train is TD3.train:
        return _of_td3(model)
    raise RollsightError(
        f"ReplayInfluenceCallback knows the updates of DQN, SAC, TD3 and DDPG, and {type(model).__name__} has another; "
        "use one of them, or score transitions in a loop of your own with objectives.TD."
    )


def evaluate_discrete(module: nn.Module, obs: Any, actions: Any) -> Evaluation:
    """DQN's Q(s, a)."""
    return Evaluation.of_critics(module(obs).gather(1, actions[:, None]))


def evaluate_continuous(module: nn.Module, obs: Any, actions: Any) -> Evaluation:
    """Q(s, a) of each critic of SAC and TD3."""
    return Evaluation.of_critics(*module(obs, actions))


def entropy_coefficient(model: SAC) -> Tensor:
    """SAC's alpha, as it is now."""
    return model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef.detach().exp()


def in_parts(call: Callable[[Records], Tensor], records: Records) -> Tensor:
    """What `call` gives for as many of the records at a time as are evaluated at once, joined."""
    size = default_chunk_size(records)
    return torch.cat([call(records.take(slice(start, start + size))) for start in range(0, len(records), size)])


def _of_dqn(model: DQN) -> Critic:
    def act(obs: Any) -> Acted:
        actions = model.q_net(obs).argmax(1)
        return actions, torch.zeros(len(actions), device=model.device)

    return Critic(
        Policy(model.q_net, evaluate_discrete),
        objectives.TD("huber"),
        lambda obs: model.q_net_target(obs).max(1).values,
        act,
    )


def _of_sac(model: SAC) -> Critic:
    def act(obs: Any) -> Acted:
        actions, log_prob = model.actor.action_log_prob(obs)
        return actions, entropy_coefficient(model) * log_prob.flatten()

    def next_values(obs: Any) -> Tensor:
        actions, entropy = act(obs)
        return _least(model.critic_target(obs, actions)) - entropy

    return Critic(Policy(model.critic, evaluate_continuous), objectives.TD(scale=0.5), next_values, act)


def _of_td3(model: TD3) -> Critic:
    def act(obs: Any) -> Acted:
        actions: Tensor = model.actor(obs)
        return actions, torch.zeros(len(actions), device=model.device)

    def next_values(obs: Any) -> Tensor:
        actions: Tensor = model.actor_target(obs)
        noise = torch.randn_like(actions) * model.target_policy_noise
        noise = noise.clamp(-model.target_noise_clip, model.target_noise_clip)
        return _least(model.critic_target(obs, (actions + noise).clamp(-1, 1)))

    return Critic(Policy(model.critic, evaluate_continuous), objectives.TD(), next_values, act)


def _least(q_values: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(q_values, 1).min(1).values
