"""Policies of every kind, small, each with a function that makes records for it; and the explicit reference scores.

`COVERED` policies must be scored by every backend; `LOOSE` ones are refused by `layerwise`, which must name `refused`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

import rollsight as rs
from rollsight import objectives as ob
from rollsight import targets as tg

OBS, ACTIONS, STEPS, WORDS, CLASSES = 5, 3, 4, 7, 6


# --- modules


class ActorCritic(nn.Module):
    """A trunk with an actor and a critic; what else a policy has is set on it by name."""

    def __init__(self, trunk: nn.Module, width: int, outputs: int = ACTIONS, **extra: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.trunk, self.actor, self.critic = trunk, nn.Linear(width, outputs), nn.Linear(width, 1)
        for name, part in extra.items():
            setattr(self, name, part)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(obs)
        return self.actor(features), self.critic(features).squeeze(-1)


class Separate(nn.Module):
    """Actor and critic with nothing in common."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(OBS, 8), nn.Tanh(), nn.Linear(8, ACTIONS))
        self.critic = nn.Sequential(nn.Linear(OBS, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(obs), self.critic(obs).squeeze(-1)


class Lora(nn.Module):
    """A frozen linear layer with a trainable low-rank adapter."""

    def __init__(self, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.a, self.b = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.b(self.a(x))


class Twice(nn.Module):
    """One layer called twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(OBS, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.again(torch.tanh(self.again(torch.tanh(self.first(x))))))


class Aliased(nn.Module):
    """One submodule under two names, as Stable-Baselines3's shared features extractor is."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = self.same = _mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.extractor(x) + self.same(2 * x)


class Block(nn.Module):
    """Pre-norm attention and MLP with residuals."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).reshape(n, t, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Tokens (N, T) to logits. `per_record`: whether the positional embedding is called with a record dimension."""

    def __init__(self, per_record: bool = True, tied: bool = False) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, 8), nn.Embedding(STEPS, 8)
        self.block, self.norm = Block(8), nn.LayerNorm(8)
        self.actor, self.critic = nn.Linear(8, WORDS, bias=False), nn.Linear(8, 1)
        self.per_record = per_record
        if tied:
            self.actor.weight = self.words.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.arange(tokens.shape[1])
        places = self.positions(places.expand_as(tokens) if self.per_record else places)
        features = self.norm(self.block(self.words(tokens) + places))
        return self.actor(features), self.critic(features).squeeze(-1)


class Attention(nn.Module):
    """torch's own attention layer, whose input projection is a loose parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(OBS + 1, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1))
        return self.attention(x, x, x)[0]


class Flattened(nn.Module):
    """A layer over sequences that sees one batch of N*T rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(OBS, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x.flatten(0, 1))).unflatten(0, x.shape[:2])


class TimeFirst(nn.Module):
    """A layer over sequences that sees the steps as its leading dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(OBS, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x.transpose(0, 1))).transpose(0, 1)


class Constant(nn.Module):
    """The same logits everywhere, from one call on a single row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, ACTIONS)

    def forward(self, obs: Tensor) -> tuple[Tensor, None]:
        return self.layer(obs.new_ones(1, 1)).expand(len(obs), -1), None


class Functional(nn.Module):
    """A layer whose weight is used a second time, past its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(OBS, OBS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(torch.tanh(self.layer(x)), self.layer.weight))


# --- evaluate


def categorical(module: nn.Module, obs: Tensor, actions: Tensor) -> rs.Evaluation:
    logits, value = module(obs)
    dist = Categorical(logits=logits, validate_args=False)
    return rs.Evaluation(dist.log_prob(actions), dist.entropy(), value)


def multi_discrete(module: nn.Module, obs: Tensor, actions: Tensor) -> rs.Evaluation:
    logits, value = module(obs)
    parts = [Categorical(logits=part, validate_args=False) for part in logits.split([2, ACTIONS - 1], -1)]
    log_prob = sum(part.log_prob(actions[:, k]) for k, part in enumerate(parts))
    return rs.Evaluation(log_prob, sum(part.entropy() for part in parts), value)


def masked(module: nn.Module, obs: dict[str, Tensor], actions: Tensor) -> rs.Evaluation:
    logits, value = module(obs["obs"])
    dist = Categorical(logits=torch.where(obs["mask"], logits, -1e8), validate_args=False)
    return rs.Evaluation(dist.log_prob(actions), dist.entropy(), value)


def gaussian(module: nn.Module, obs: Tensor, actions: Tensor) -> rs.Evaluation:
    mean, value = module(obs)
    dist = Normal(mean, module.log_std.exp(), validate_args=False)
    return rs.Evaluation(dist.log_prob(actions).sum(-1), dist.entropy().sum(-1), value)


def gsde(module: nn.Module, obs: Tensor, actions: Tensor) -> rs.Evaluation:
    """State-dependent exploration: sigma(s)^2 = phi(s)^2 exp(log_std)^2; no entropy, as when squashed."""
    features = module.trunk(obs)
    sigma = (features.detach() ** 2 @ module.log_std.exp() ** 2 + 1e-6).sqrt()
    log_prob = Normal(module.actor(features), sigma, validate_args=False).log_prob(actions).sum(-1)
    return rs.Evaluation(log_prob, None, module.critic(features).squeeze(-1))


def recurrent(module: nn.Module, obs: dict[str, Tensor], actions: Tensor) -> rs.Evaluation:
    features, _ = module.trunk(obs["obs"], (obs["h"].unsqueeze(0), obs["c"].unsqueeze(0)))
    dist = Categorical(logits=module.actor(features), validate_args=False)
    return rs.Evaluation(dist.log_prob(actions), dist.entropy(), module.critic(features).squeeze(-1))


# --- records


def _vectors(n: int) -> Any:
    return torch.randn(n, OBS)


def _images(n: int) -> Any:
    return torch.randn(n, 2, 8, 8)


def _discrete(n: int) -> Tensor:
    return torch.randint(ACTIONS, (n,))


def _mask(n: int) -> Any:
    return {"obs": _vectors(n), "mask": torch.ones(n, ACTIONS, dtype=torch.bool)}


def _sequences(n: int) -> Any:
    return torch.randn(n, STEPS, OBS)


def _tokens(n: int) -> Any:
    return torch.randint(WORDS, (n, STEPS))


def _states(n: int) -> Any:
    return {"obs": _sequences(n), "h": torch.randn(n, 6), "c": torch.randn(n, 6)}


def _discrete_each_step(n: int) -> Tensor:
    return torch.randint(ACTIONS, (n, STEPS))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(OBS, 8), nn.Tanh(), nn.Linear(8, 6), nn.ReLU(inplace=True))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 4, stride=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 2, padding=1, padding_mode="circular"),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.ReLU(inplace=True),
    )


def _norms() -> nn.Module:
    conv = [nn.Conv2d(2, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten()]
    module = nn.Sequential(*conv, nn.Linear(144, 6), nn.BatchNorm1d(6), nn.Tanh())
    module(torch.randn(32, 2, 8, 8))  # running statistics that are not 0 and 1
    return module.eval()


def _conv1d() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, OBS)), nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 6))


def _frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(OBS, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
    module[0].requires_grad_(False)
    module[2].bias.requires_grad_(False)
    return module


def _tanh() -> nn.Module:
    return nn.Sequential(nn.Linear(OBS, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())


def _weight_norm(frozen: bool = False) -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(OBS, 6))
    layer.parametrizations.requires_grad_(not frozen)
    return nn.Sequential(layer, nn.Tanh())


@dataclass(frozen=True)
class Kind:
    """One kind of policy. refused: the parameter that `layerwise`'s refusal names, None where it covers the policy."""

    name: str
    build: Callable[[], nn.Module]
    evaluate: Callable[[nn.Module, Any, Any], rs.Evaluation] = categorical
    obs: Callable[[int], Any] = _vectors
    actions: Callable[[int], Tensor] = _discrete
    refused: str | None = None
    forward_mode: bool = True

    def __repr__(self) -> str:
        return self.name

    @property
    def covered(self) -> bool:
        return self.refused is None

    @property
    def sequences(self) -> bool:
        return self.obs in (_sequences, _tokens, _states)

    def policy(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> rs.Policy:
        torch.manual_seed(seed)
        return rs.Policy(self.build().to(dtype), self.evaluate)

    def records(
        self, policy: rs.Policy, n: int = 9, *, seed: int = 1, garbage: bool = True, shift: float = 0.3
    ) -> rs.Records:
        """n records, off the policy by `shift` in log-probability (the clip is active on some), one with advantage 0.

        garbage: one row, and the last token of some sequences, are invalid and hold NaN."""
        torch.manual_seed(seed)
        dtype = next(policy.module.parameters()).dtype
        obs, actions = self.obs(n), self.actions(n)
        obs = {k: _cast(v, dtype) for k, v in obs.items()} if isinstance(obs, dict) else _cast(obs, dtype)
        actions = _cast(actions, dtype)
        if self.evaluate is masked:
            obs["mask"][torch.arange(n), (actions + 1) % ACTIONS] = torch.rand(n) < 0.5
        with torch.no_grad():
            log_probs = self.evaluate(policy.module, obs, actions).log_prob
        log_probs = log_probs + shift * torch.randn_like(log_probs)
        advantages, returns, values = (torch.randn_like(log_probs) for _ in range(3))
        valid = torch.ones(log_probs.shape, dtype=torch.bool)
        if n > 2:
            advantages[2] = 0
        if garbage and n > 4:
            valid[4] = False
            if self.sequences:
                valid[5:, -1] = False
            for column in (log_probs, advantages, returns, values):
                column[~valid] = math.nan
            for column in obs.values() if isinstance(obs, dict) else [obs]:
                if column.is_floating_point():
                    column[4] = math.nan
        ids = {"episode": torch.arange(n) // 2, "round": torch.full((n,), 3)}
        return rs.Records(obs, actions, log_probs, advantages, returns=returns, values=values, ids=ids, valid=valid)


def _cast(column: Tensor, dtype: torch.dtype) -> Tensor:
    return column.to(dtype) if column.is_floating_point() else column


def _trunk(build: Callable[[], nn.Module], width: int = 6, outputs: int = ACTIONS, **extra: Any) -> Any:
    return lambda: ActorCritic(build(), width, outputs, **{name: part() for name, part in extra.items()})


def _actions2(n: int) -> Tensor:
    return torch.randint(2, (n, 2))


def _continuous(n: int) -> Tensor:
    return torch.randn(n, ACTIONS)


COVERED = [
    Kind("mlp", Separate),
    Kind("shared_trunk", _trunk(_mlp)),
    Kind("cnn", _trunk(_cnn), obs=_images),
    Kind("norms", _trunk(_norms), obs=_images),
    Kind("rms_norm", _trunk(lambda: nn.Sequential(nn.Linear(OBS, 6), nn.RMSNorm(6), nn.Tanh()))),
    Kind("conv1d", _trunk(_conv1d)),
    Kind("frozen", _trunk(_frozen)),
    Kind("lora", _trunk(lambda: nn.Sequential(Lora(OBS, 8), nn.Tanh(), Lora(8, 6)))),
    Kind("twice", _trunk(Twice)),
    Kind("aliased", _trunk(Aliased)),
    Kind("table", _trunk(lambda: nn.Embedding(CLASSES, 6, padding_idx=1)), obs=lambda n: torch.randint(CLASSES, (n,))),
    Kind("multi_discrete", _trunk(_mlp, outputs=ACTIONS + 1), multi_discrete, actions=_actions2),
    Kind("masked", _trunk(_mlp), masked, obs=_mask),
    Kind("transformer", Transformer, obs=_tokens, actions=_tokens),
    Kind("tied", lambda: Transformer(tied=True), obs=_tokens, actions=_tokens),
]
LOOSE = [
    Kind("gaussian", _trunk(_mlp, log_std=lambda: nn.Parameter(torch.randn(ACTIONS) / 4)), gaussian,
         actions=_continuous, refused="log_std"),
    Kind("gsde", _trunk(_tanh, log_std=lambda: nn.Parameter(torch.randn(6, ACTIONS) / 4)), gsde,
         actions=_continuous, refused="log_std"),
    Kind("lstm", _trunk(lambda: nn.LSTM(OBS, 6, batch_first=True)), recurrent, obs=_states,
         actions=_discrete_each_step, refused="trunk.weight_ih_l0"),
    Kind("attention", _trunk(Attention), obs=_sequences, actions=_discrete_each_step,
         refused="trunk.attention.in_proj_weight"),
    Kind("flattened", _trunk(Flattened), obs=_sequences, actions=_discrete_each_step, refused="trunk.layer.weight"),
    Kind("time_first", _trunk(TimeFirst), obs=_sequences, actions=_discrete_each_step, refused="trunk.layer.weight"),
    Kind("positions", lambda: Transformer(per_record=False), obs=_tokens, actions=_tokens, refused="positions.weight"),
    Kind("functional", _trunk(Functional, OBS), refused="trunk.layer.weight"),
    Kind("weight_norm", _trunk(_weight_norm), refused="trunk.0.parametrizations.weight.original0",
         forward_mode=False),
    Kind("frozen_weight_norm", _trunk(lambda: _weight_norm(frozen=True)), refused="trunk.0.bias"),
]  # fmt: skip
KINDS = {kind.name: kind for kind in [*COVERED, *LOOSE]}


# --- the reference: explicit formulas, one record and one token at a time


def _normalised(advantages: Tensor, valid: Tensor, rule: str) -> Tensor:
    """(N,) or (N, T) normalised over valid entries in their order."""
    if rule == "raw":
        return torch.where(valid, advantages, 0.0)
    places = valid.nonzero().tolist()
    size = len(places) if rule == "buffer" else int(rule.partition(":")[2])
    result = torch.zeros_like(advantages)
    chunks = [places[start : start + size] for start in range(0, len(places), size)]
    if len(chunks) > 1 and len(chunks[-1]) == 1:
        last = chunks.pop()
        chunks[-1] += last
    for chunk in chunks:
        numbers = [float(advantages[tuple(p)]) for p in chunk]
        mean = sum(numbers) / len(numbers)
        std = math.sqrt(sum((x - mean) ** 2 for x in numbers) / max(len(numbers) - 1, 1))
        for place, x in zip(chunk, numbers, strict=True):
            result[tuple(place)] = (x - mean) / (std + 1e-8) if len(places) > 1 else x
    return result


def _losses(policy: rs.Policy, records: rs.Records, objective: ob.PPO | ob.A2C, i: int) -> dict[int, Tensor]:
    """Record i's loss terms by token (0 for a plain record), valid ones only."""
    advantages = _normalised(records.advantages, records.valid, objective.advantage)
    tokens, terms = _valid_tokens(records, i), {}
    if not tokens:
        return terms
    log_prob, entropy, value, *_ = _one(policy, records, i)
    for t in tokens:
        advantage, lp = _flat(advantages[i])[t], log_prob[t]
        if isinstance(objective, ob.A2C):
            term = advantage * lp
        else:
            ratio = torch.exp(lp - _flat(records.log_probs[i])[t])
            low, high = 1 - objective.clip_range, 1 + objective.clip_range
            # The clipped surrogate by cases: flat where clipping makes it smaller.
            flat = (advantage > 0 and ratio > high) or (advantage < 0 and ratio < low)
            term = advantage * (high if advantage > 0 else low) + 0 * lp if flat else advantage * ratio
        term = term + objective.entropy * (-lp if entropy is None else entropy[t])
        if objective.value:
            term = term - objective.value * (_flat(records.returns[i])[t] - value[t]) ** 2
        terms[t] = term
    return terms


def _target(policy: rs.Policy, records: rs.Records, target: Any) -> Tensor:
    """f(theta), one scalar."""
    if isinstance(target, tg.Action):
        pairs = [
            policy.evaluate(policy.module, _row(target.obs, i), _row(target.actions, i)).log_prob.sum()
            for i in range(len(target.actions))
        ]
        return torch.stack(pairs).mean()
    measured = records if target.records is None else target.records
    rows = [i for i in range(len(measured)) if _valid_tokens(measured, i)]
    tokens = sum(len(_valid_tokens(measured, i)) for i in rows)
    total = 0.0
    for i in rows:
        log_prob, *_ = _one(policy, measured, i)
        advantages, valid = _flat(measured.advantages[i]), _valid_tokens(measured, i)
        if isinstance(target, tg.Return):
            total = total + sum(log_prob[t] * advantages[t] for t in valid) / tokens
        elif isinstance(target, tg.Sequence):
            total = total + sum(log_prob[t] for t in valid) * advantages[valid[-1]] / len(rows)
        else:
            losses = _losses(policy, measured, target.objective or ob.PPO(), i)
            total = total + sum(losses.values()) / tokens
    return total


def _one(policy: rs.Policy, records: rs.Records, i: int) -> list[Tensor | None]:
    evaluation = policy.evaluate(policy.module, _row(records.obs, i), _row(records.actions, i))
    return [None if part is None else part.reshape(-1) for part in evaluation]


def _row(rows: Any, i: int) -> Any:
    return {k: v[i : i + 1] for k, v in rows.items()} if isinstance(rows, dict) else rows[i : i + 1]


def _flat(row: Tensor) -> Tensor:
    return row.reshape(-1)


def _valid_tokens(records: rs.Records, i: int) -> list[int]:
    return _flat(records.valid[i]).nonzero().flatten().tolist()


def flat_gradient(policy: rs.Policy, value: Tensor) -> Tensor:
    """(P,) gradient over the trainable parameters in their order."""
    parameters = [p for p in policy.module.parameters() if p.requires_grad]
    grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g.to_dense()).flatten() for p, g in zip(parameters, grads, strict=True)]
    )


def reference_target(policy: rs.Policy, records: rs.Records, target: Any) -> Tensor:
    """f(theta) as a scalar with a graph."""
    return _target(policy, records, target)


def reference_gradients(policy: rs.Policy, records: rs.Records, objective: ob.PPO | ob.A2C) -> Tensor:
    """(N, P): every record's own gradient."""
    size = sum(p.numel() for p in policy.module.parameters() if p.requires_grad)
    rows = []
    for i in range(len(records)):
        terms = _losses(policy, records, objective, i)
        zero = records.log_probs.new_zeros(size)
        rows.append(flat_gradient(policy, sum(terms.values())) if terms else zero)
    return torch.stack(rows)


def reference_scores(policy: rs.Policy, records: rs.Records, target: Any, objective: ob.PPO | ob.A2C) -> Tensor:
    """(N,), or (N, M) with each=True."""
    gradients = reference_gradients(policy, records, objective)
    if getattr(target, "each", False):
        singles = [tg.Action(_row(target.obs, m), _row(target.actions, m)) for m in range(len(target.actions))]
        return torch.stack([gradients @ flat_gradient(policy, _target(policy, records, one)) for one in singles], -1)
    return gradients @ flat_gradient(policy, _target(policy, records, target))


def relative_error(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest |b|."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))


# --- settings that several tests share

FULL = {"entropy": 0.03, "value": 0.5}  # every term of the loss


def held_out(kind: Kind, policy: rs.Policy) -> rs.Records:
    return kind.records(policy, 7, seed=5)


def some_actions(kind: Kind, policy: rs.Policy, pairs: int, each: bool = False) -> tg.Action:
    other = kind.records(policy, pairs, seed=6, garbage=False)
    return tg.Action(other.obs, other.actions, each=each)
