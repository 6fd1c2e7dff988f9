"""SAC's actor: what its own loss on the buffer's states does to the policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from stable_baselines3 import SAC
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor, nn

from rollsight.adapters.sb3.streams import streams_of_their_own
from rollsight.adapters.sb3_off_policy.critics import Critic, entropy_coefficient, in_parts
from rollsight.adapters.sb3_off_policy.held_out import HeldOut
from rollsight.adapters.sb3_off_policy.translate import Replay
from rollsight.errors import OptionError
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records, Rows
from rollsight.streams import Purpose

_NOISE = "noise"


@dataclass(frozen=True, eq=False)
class ActorProblem:
    """What the actor is scored on.

    policy: the actor, and how it evaluates records.
    records: the buffer's transitions, each with the noise that its action is drawn with.
    held_out: steps of fresh episodes with their Monte-Carlo advantages G - V(s).
    """

    policy: Policy
    records: Records
    held_out: Records


def check_actor(model: OffPolicyAlgorithm) -> None:
    """`OptionError` where the model has no actor that draws its actions as a squashed Gaussian."""
    if not isinstance(model, SAC) or model.use_sde:
        kind = f"{type(model).__name__} with gSDE" if getattr(model, "use_sde", False) else type(model).__name__
        raise OptionError(
            f"{{target}} needs the actor of SAC without gSDE, and the model is a {kind}; choose another target",
            target="improvement",
        )


def actor_problem(
    model: OffPolicyAlgorithm, critic: Critic, replay: Replay, held: HeldOut, key: tuple[int, int]
) -> ActorProblem:
    """The actor's own problem. key: (seed, round)."""
    records, played = replay.records, held.records
    assert isinstance(model, SAC)
    assert played.returns is not None
    with streams_of_their_own(*key, Purpose.ACTOR_NOISE), torch.no_grad():
        noise, other = (torch.randn_like(part.actions) for part in (records, played))  # type: ignore[arg-type]
        values = in_parts(lambda part: critic.next_values(part.obs), played)
    advantages = played.returns - values
    return ActorProblem(
        Policy(model.actor, _evaluate(model)),
        replace(records, obs=_with(records.obs, noise)),
        replace(played, obs=_with(played.obs, other), advantages=advantages),
    )


def _evaluate(model: SAC) -> Callable[[nn.Module, Any, Any], Evaluation]:
    coefficient = entropy_coefficient(model)

    def evaluate(module: nn.Module, obs: Any, actions: Any) -> Evaluation:
        """log pi of the actions, and of an action that is drawn with the noise min Q - alpha log pi."""
        noise = obs[_NOISE]
        seen = obs["obs"] if "obs" in obs else {k.removeprefix("obs."): v for k, v in obs.items() if k != _NOISE}
        actor: Any = module
        mean, log_std, _ = actor.get_action_dist_params(seen)
        distribution = actor.action_dist.proba_distribution(mean, log_std)
        log_prob = distribution.log_prob(actions)
        gaussian = mean + log_std.exp() * noise
        drawn = torch.tanh(gaussian)
        entropy = coefficient * distribution.log_prob(drawn, gaussian)
        q_values = torch.cat(model.critic(seen, drawn), 1).min(1).values
        return Evaluation(log_prob, value=q_values - entropy)

    return evaluate


def _with(obs: Rows, noise: Tensor) -> Rows:
    plain = {"obs": obs} if isinstance(obs, Tensor) else {f"obs.{name}": column for name, column in obs.items()}
    return {**plain, _NOISE: noise}
