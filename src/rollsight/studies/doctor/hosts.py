"""Faults of the learner: what is done to a Stable-Baselines3 model before or while it trains."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback


def value_steps(model: PPO, factor: float) -> None:
    """Every step moves the value network so many times as far: 0 never, 0.02 hardly, -1 the wrong way."""
    policy: Any = model.policy
    parameters = [*policy.mlp_extractor.value_net.parameters(), *policy.value_net.parameters()]
    step = policy.optimizer.step

    def scaled(*args: Any, **how: Any) -> Any:
        before = [p.detach().clone() for p in parameters]
        result = step(*args, **how)
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                p.copy_(old + factor * (p - old))
        return result

    policy.optimizer.step = scaled


def sharp_policy(model: PPO, strength: float) -> None:
    """The policy is nearly deterministic from the start: a bias of its first action, or half of it off log std."""
    policy: Any = model.policy
    with torch.no_grad():
        if hasattr(policy, "log_std"):
            policy.log_std -= strength / 2
        else:
            policy.action_net.bias[0] += strength


def wide_actions(model: PPO, log_std: float) -> None:
    """The logarithm of the actions' standard deviation starts here."""
    policy: Any = model.policy
    with torch.no_grad():
        policy.log_std.fill_(log_std)


def dead_units(model: PPO, share: float) -> None:
    """This share of the first hidden units of both networks is 0 for every observation, and stays so."""
    policy: Any = model.policy
    for net in (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net):
        layer = next(m for m in net if isinstance(m, torch.nn.Linear))
        dead = int(share * layer.out_features)
        with torch.no_grad():
            layer.weight[:dead] = 0
            layer.bias[:dead] = -1
    for net in (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net):
        for i, module in enumerate(net):
            if isinstance(module, torch.nn.Tanh):
                net[i] = torch.nn.ReLU()


class StaleLogProbs(BaseCallback):
    """Log-probabilities of the actions are by the policy of so many rounds ago. Comes before `InfluenceCallback`."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self._kept: deque[Any] = deque(maxlen=rounds + 1)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        self._kept.append(copy.deepcopy(model.policy.state_dict()))
        now, buffer = self._kept[-1], model.rollout_buffer
        if len(self._kept) < 2:
            return
        flat = [torch.as_tensor(c.reshape(-1, *c.shape[2:])) for c in (buffer.observations, buffer.actions)]
        actions = (
            flat[1].long().flatten()
            if model.policy.action_dist.__class__.__name__ == "CategoricalDistribution"
            else flat[1]
        )
        model.policy.load_state_dict(self._kept[0])
        with torch.no_grad():
            _, log_probs, _ = model.policy.evaluate_actions(flat[0], actions)
        model.policy.load_state_dict(now)
        buffer.log_probs[:] = log_probs.numpy().reshape(buffer.log_probs.shape)


class Undo(BaseCallback):
    """After the update of this round the policy is `share` of the way back to where it began."""

    def __init__(self, round: int, share: float) -> None:
        super().__init__()
        self._round, self._share, self._rounds = round, share, 0

    def _on_training_start(self) -> None:
        model: Any = self.model
        self._first = copy.deepcopy(model.policy.state_dict())

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self._rounds == self._round:
            model: Any = self.model
            now = model.policy.state_dict()
            model.policy.load_state_dict(
                {name: torch.lerp(value, self._first[name], self._share) for name, value in now.items()}
            )
        self._rounds += 1
