"""The priority of ReLo (Sujit et al. 2023): how much of a transition's loss the network can still learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rollsight.adapters.sb3_off_policy import ReplayInfluenceCallback
from rollsight.adapters.sb3_off_policy.critics import in_parts
from rollsight.policy import Policy
from rollsight.records import Records


def relo(watch: ReplayInfluenceCallback) -> Tensor:
    """(N,) TD loss of the critic less that of its target network, by the same targets."""
    assert watch.critic is not None
    assert watch.replay is not None
    critic, records = watch.critic, watch.replay.records
    model: Any = watch.model
    target = model.q_net_target if hasattr(model, "q_net_target") else model.critic_target
    old = replace(critic, policy=Policy(target, critic.policy.evaluate))

    def learnable(part: Records) -> Tensor:
        now, before = (one.objective.terms(one.policy(part), part) for one in (critic, old))
        return before - now  # terms are losses with the other sign

    with torch.no_grad():
        return in_parts(learnable, records)
