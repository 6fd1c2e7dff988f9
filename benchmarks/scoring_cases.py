"""The networks that `scoring.py` measures, and the ways of scoring that it compares, two yardsticks among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.func import functional_call, grad, vmap

import rollsight as rs

OBJECTIVE = rs.objectives.PPO()
TRAINED = rs.objectives.PPO(value=0.5)  # what Stable-Baselines3 trains with by default, the value error included


class ActorCritic(nn.Module):
    """Logits and value; separate towers as in Stable-Baselines3's MlpPolicy, or one convolutional trunk."""

    def __init__(self, actor: nn.Module, critic: nn.Module, trunk: nn.Module | None = None) -> None:
        super().__init__()
        self.actor, self.critic, self.trunk = actor, critic, trunk or nn.Identity()

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(obs.float() / 255 if obs.dtype == torch.uint8 else obs)
        return self.actor(features), self.critic(features).squeeze(-1)


def evaluate(module: nn.Module, obs: Tensor, actions: Tensor) -> rs.Evaluation:
    """The same quantities that hosts compute."""
    logits, value = module(obs)
    distribution = Categorical(logits=logits)
    return rs.Evaluation(distribution.log_prob(actions), distribution.entropy(), value)


def mlp(width: int) -> ActorCritic:
    """Observations of 8 numbers, 4 actions."""

    def tower(outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
        )

    return ActorCritic(tower(4), tower(1))


def nature_cnn() -> ActorCritic:
    """The network of Mnih et al. 2015 on (4, 84, 84) bytes."""
    convolutions = [nn.Conv2d(4, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3)]
    activated = [part for convolution in convolutions for part in (convolution, nn.ReLU())]
    trunk = nn.Sequential(*activated, nn.Flatten(), nn.Linear(3136, 512), nn.ReLU())
    return ActorCritic(nn.Linear(512, 4), nn.Linear(512, 1), trunk)


def make_records(policy: rs.Policy, obs: Tensor) -> rs.Records:
    """A buffer of the policy's own actions, in episodes of 50 steps."""
    n = len(obs)
    actions = torch.randint(0, 4, (n,))
    parts = zip(obs.split(4096), actions.split(4096), strict=True)
    log_probs = torch.cat([policy.evaluate(policy.module, *part).log_prob.detach() for part in parts])
    ids = {"episode": torch.arange(n) // 50}
    return rs.Records(obs, actions, log_probs, torch.randn(n), returns=torch.randn(n), ids=ids)


@dataclass(frozen=True)
class Case:
    """One network with its buffer."""

    name: str
    policy: rs.Policy
    records: rs.Records


def make_case(name: str, n: int) -> Case:
    """`name`: "mlp WIDTH" or "nature cnn"."""
    torch.manual_seed(0)
    image = name == "nature cnn"
    policy = rs.Policy((nature_cnn() if image else mlp(int(name.split()[1]))).eval(), evaluate)
    obs = torch.randint(0, 256, (n, 4, 84, 84), dtype=torch.uint8) if image else torch.randn(n, 8)
    return Case(name, policy, make_records(policy, obs))


def prepare(records: rs.Records) -> rs.Records:
    """The records as the loss takes them, advantages normalised."""
    return OBJECTIVE.prepare(records)


def forward_backward(policy: rs.Policy, records: rs.Records, objective: rs.objectives.PPO = TRAINED) -> Any:
    """One training pass over prepared records: the gradient of the mean loss."""
    loss = objective.terms(policy(records), records).mean()
    return torch.autograd.grad(loss, list(policy.module.parameters()), allow_unused=True)


def target_gradient(policy: rs.Policy, records: rs.Records) -> dict[str, Tensor]:
    """Gradient of `f_return`, of the parameters that it reaches."""
    parameters = dict(policy.module.named_parameters())
    value = (policy(records).log_prob * records.advantages).mean()
    grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, grads, strict=True) if g is not None}


def vmap_grad(policy: rs.Policy, records: rs.Records) -> Tensor:
    """Yardstick: every record's whole gradient, then the inner product."""
    direction, prepared = target_gradient(policy, records), OBJECTIVE.prepare(records)
    every = {name: p.detach() for name, p in policy.module.named_parameters()}

    def loss(parameters: dict[str, Tensor], obs: Tensor, action: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
        logits, _ = functional_call(policy.module, {**every, **parameters}, (obs[None],))
        ratio = torch.exp(F.log_softmax(logits[0], -1).gather(0, action[None])[0] - old)
        return torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)

    reached = {name: every[name] for name in direction}
    columns: Any = (prepared.obs, prepared.actions, prepared.log_probs, prepared.advantages)
    grads = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))(reached, *columns)
    return sum((g.flatten(1) @ direction[name].flatten() for name, g in grads.items()), torch.zeros(len(records)))


def outer_products(policy: rs.Policy, records: rs.Records) -> Tensor:
    """Yardstick: every record's weight gradient, layer by layer, as the paper's released code forms them."""
    direction, prepared = target_gradient(policy, records), OBJECTIVE.prepare(records)
    layers = {name: m for name, m in policy.module.named_modules() if f"{name}.weight" in direction}
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = args[0].detach(), output

    handles = [m.register_forward_hook(partial(hook, name)) for name, m in layers.items()]
    terms = OBJECTIVE.terms(policy(prepared), prepared)
    for handle in handles:
        handle.remove()
    g_outs = torch.autograd.grad(terms.sum(), [output for _, output in seen.values()])
    scores = torch.zeros(len(records))
    for (name, (x, _)), g in zip(seen.items(), g_outs, strict=True):
        layer = layers[name]
        if isinstance(layer, nn.Conv2d):
            g = g.flatten(2)
            gradient = torch.einsum("nop,nip->noi", g, F.unfold(x, layer.kernel_size, stride=layer.stride))
            g = g.sum(2)
        else:
            gradient = torch.einsum("no,ni->noi", g, x)
        scores += gradient.flatten(1) @ direction[f"{name}.weight"].flatten() + g @ direction[f"{name}.bias"]
    return scores


Cells = dict[str, Callable[[rs.Policy, rs.Records], Any]]


def score_with(backend: Any) -> Callable[[rs.Policy, rs.Records], Tensor]:
    return lambda policy, records: rs.score_records(policy, records, backend=backend).values


CELLS: Cells = {
    "forward + backward": forward_backward,
    "policy loss alone": partial(forward_backward, objective=OBJECTIVE),
    "layerwise": score_with("layerwise"),
    "jvp": score_with("jvp"),
    "double_backward": score_with("double_backward"),
    "auto": score_with("auto"),
    "oracle": score_with("oracle"),
    "vmap(grad), dot": vmap_grad,
    "outer products": outer_products,
    "trust_line": lambda policy, records: rs.trust_line(policy, records),
}
