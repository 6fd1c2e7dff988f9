"""Policies whose forward and autograd disagree, or whose weights are used outside their layers; small, of every kind
met so far. `auto`: the backend that is to be taken, None where only the loop over records covers the policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.checkpoint import checkpoint
from zoo import ACTIONS, OBS, WORDS, ActorCritic, Kind, Transformer

import rollsight as rs


@dataclass(frozen=True, repr=False)
class Odd(Kind):
    """reason: a pattern in `Scores.reason`, or in the refusal."""

    auto: str | None = "layerwise"
    reason: str = ""


class Trunk(nn.Module):
    """Two layers; `f(self, x)` makes the features."""

    def __init__(self, f: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.f = nn.Linear(OBS, 6), nn.Linear(6, 6), f
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.f(self, x))


def trunk(f: Callable[[Any, Tensor], Tensor], **parts: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: ActorCritic(Trunk(f, **{name: part() for name, part in parts.items()}), 6)


# --- embeddings


def words(tied: bool = False, **options: Any) -> Callable[[], nn.Module]:
    """A transformer with another embedding; token 2 occurs in every buffer."""

    def build() -> nn.Module:
        module = Transformer(tied=False)
        module.words = nn.Embedding(WORDS, 8, **options)
        if tied:
            module.actor.weight = module.words.weight
        return module

    return build


def padded_late() -> nn.Module:
    """A padding index set afterwards, counted from the end."""
    module = words(tied=True)()
    module.words.padding_idx = 2 - WORDS
    return module


class Bag(nn.Module):
    def __init__(self, weighted: bool = False, **options: Any) -> None:
        super().__init__()
        self.bag, self.weighted = nn.EmbeddingBag(WORDS, 6, **options), weighted

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.linspace(1, 2, x.numel()).view_as(x).to(self.bag.weight) if self.weighted else None
        return torch.tanh(self.bag(x) if weights is None else self.bag(x, per_sample_weights=weights[:1].expand_as(x)))


class Table(nn.Module):
    """An embedding looked up by a function, not a module."""

    def __init__(self, look_up: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.look_up = nn.Embedding(WORDS, 6), look_up

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.look_up(x, self.table.weight).sum(1))


def _word_bags(n: int) -> Tensor:
    return torch.randint(WORDS, (n, 3))


# --- what autograd does not see, or sees otherwise


def straight_through_no_grad(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    with torch.no_grad():
        step = (4 * x).round() / 4 - x
    return m.b(x + step)


def under_no_grad(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        base = torch.tanh(m.a(x)).view(-1, 6)
    return base + m.b(torch.tanh(m.a(x)))


def nearest_code(m: Any, x: Tensor) -> Tensor:
    """Vector quantisation: the codebook has no gradient here, its input takes the output's."""
    x = m.a(x)
    code = m.codes(torch.cdist(x.detach(), m.codes.weight.detach()).argmin(1))
    return m.b(x + (code - x).detach())


class Round(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class RoundWithDerivative(Round):
    """Its forward mode is the true derivative, 0, which is not its backward."""

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        return 0 * t


class Reversal(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -0.3 * g


class Once(Reversal):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -0.3 * g


class Cut(Reversal):
    """A backward that autograd cannot follow, and does not say so."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -0.3 * g.detach()


class OwnLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w, 0.5 * g.T @ x


def hooked(hook: Callable[[Tensor], Any], guarded: bool = True) -> Callable[[Any, Tensor], Tensor]:
    def f(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        if x.requires_grad if guarded else torch.is_grad_enabled():
            x.register_hook(hook)
        return m.b(torch.tanh(x))

    return f


def plain(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.tanh(m.a(x)))


def loose(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, m.a.weight) + plain(m, x)


def with_hooks(add: Callable[[Any], Any], f: Callable[[Any, Tensor], Tensor] = plain) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = trunk(f)()
        add(module.trunk)
        return module

    return build


def _mask_rows(g: Tensor) -> Tensor:
    return g * torch.arange(len(g)).ge(2).to(g).view(-1, *[1] * (g.dim() - 1))


def quantised(m: nn.Module) -> None:
    """Weights rounded for the forward only, by its hooks."""

    def before(layer: Any, args: Any) -> None:
        layer.kept = layer.weight.data
        layer.weight.data = (8 * layer.kept).round() / 8

    def after(layer: Any, args: Any, out: Any) -> None:
        layer.weight.data = layer.kept

    m.a.register_forward_pre_hook(before)
    m.a.register_forward_hook(after)


# --- weights outside their layers


def rare(k: float, often: float = 0.0) -> Callable[[Any, Tensor], Tensor]:
    """The weight is used again where the first observation is large: in one record of the buffer."""

    def f(m: Any, x: Tensor) -> Tensor:
        flag = (x[:, :1] > 3).to(x) + often
        return torch.tanh(m.a(x)) + k * flag * torch.sin(x @ m.a.weight.T)

    return f


def rare_rows(m: Any, x: Tensor) -> Tensor:
    """The other use is not in the graph of a buffer without such rows."""
    out, rows = torch.tanh(m.a(x)), (x[:, 0] > 3).nonzero().flatten()
    return out.index_add(0, rows, 0.1 * torch.sin(x[rows] @ m.a.weight.T)) if len(rows) else out


def _one_large(n: int) -> Tensor:
    x = torch.randn(n, OBS).clamp(-2, 2)
    x[n // 2, 0] = 4
    return x


def regularised(module: nn.Module, obs: Tensor, actions: Tensor) -> rs.Evaluation:
    e = zoo.categorical(module, obs, actions)
    return e._replace(log_prob=e.log_prob - 1e-3 * module.actor.weight.square().sum())


class Cells(nn.Module):
    """An LSTM cell, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(OBS, 6)

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            out.append(state[0])
        return torch.stack(out, 1)


class Experts(nn.Module):
    """Records routed to experts, each of which sees its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(OBS, 2), nn.ModuleList(nn.Linear(OBS, 6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        best, out = weights.argmax(-1), x.new_zeros(len(x), 6)
        for k, expert in enumerate(self.experts):
            rows = (best == k).nonzero().flatten()
            out = out.index_add(0, rows, expert(x[rows]) * weights[rows, k, None])
        return torch.tanh(out)


class GatedRMSNorm(nn.Module):
    """Known by name, and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(6)), 1e-6

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x * F.silu(gate), x.shape[-1:], None, self.eps)


class CopyingRMSNorm(nn.Module):
    """Saves a copy of its input, so that autograd does not mind what happens to the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(6)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x.clone(), x.shape[-1:], None, self.variance_epsilon)


def added_in_place(m: Any, x: Tensor) -> Tensor:
    hidden = torch.sin(m.a(x))
    normed = m.norm(hidden)
    hidden += 1
    return normed + 0.1 * hidden


def parametrised(register: Callable[[nn.Module], Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = trunk(plain)()
        register(module.trunk.a)
        module(torch.randn(8, OBS))  # spectral norm's power iteration
        return module.eval()

    return build


def _sequences(**options: Any) -> dict[str, Any]:
    return {"obs": zoo._tokens, "actions": zoo._tokens, **options}


UNSEEN = r"jvp.*custom autograd\.Function"
HOOK = r"jvp.*hook"
OUTSIDE = r"layerwise.*'trunk\.a\.weight'.*outside its layer"

ODD = [
    Odd("padding", words(padding_idx=2), **_sequences()),
    Odd("padding_tied", words(True, padding_idx=2), **_sequences()),
    Odd("padding_late", padded_late, **_sequences()),
    Odd("max_norm", words(max_norm=1.0), **_sequences()),
    Odd("max_norm_tied", words(True, max_norm=1.0, padding_idx=2), **_sequences()),
    Odd("sparse", words(sparse=True, padding_idx=2), **_sequences()),
    Odd("bag", lambda: ActorCritic(Bag(mode="sum", padding_idx=2), 6), obs=_word_bags),
    Odd("bag_mean", lambda: ActorCritic(Bag(mode="mean", padding_idx=2), 6), obs=_word_bags),
    Odd("bag_max", lambda: ActorCritic(Bag(mode="max"), 6), obs=_word_bags, auto=None,
        reason=r"trunk\.bag\.weight.*jvp.*_embedding_bag"),
    Odd("bag_weighted", lambda: ActorCritic(Bag(mode="sum", weighted=True), 6), obs=_word_bags, auto=None,
        reason=r"trunk\.bag\.weight.*jvp.*_embedding_bag"),
    Odd("functional_padding", lambda: ActorCritic(Table(lambda x, w: F.embedding(x, w, padding_idx=2)), 6),
        obs=_word_bags, auto="jvp", reason=r"trunk\.table\.weight"),
    Odd("functional_padding_last", lambda: ActorCritic(Table(lambda x, w: F.embedding(x, w, -5)), 6),
        obs=_word_bags, auto="jvp"),
    Odd("torch_embedding", lambda: ActorCritic(Table(lambda x, w: torch.embedding(w, x, 2)), 6), obs=_word_bags,
        auto="jvp"),
    Odd("partly_detached", trunk(lambda m, x: m.b(F.linear(x, m.a.weight.detach()) + F.linear(x.detach(), m.a.weight))),
        auto="jvp"),
    Odd("detached_weight", trunk(lambda m, x: m.b(torch.tanh(m.a(x)) + F.linear(x, m.a.weight.detach())))),
    Odd("straight_through", trunk(lambda m, x: m.b(m.a(x) + (m.a(x).round() - m.a(x)).detach()))),
    Odd("straight_through_no_grad", trunk(straight_through_no_grad)),
    Odd("straight_through_loose", trunk(lambda m, x: m.b(F.linear(x, m.a.weight) + straight_through_no_grad(m, x))),
        auto="jvp"),
    Odd("under_no_grad", trunk(under_no_grad)),
    Odd("under_no_grad_loose", trunk(lambda m, x: F.linear(x, m.a.weight) + under_no_grad(m, x)), auto="jvp"),
    Odd("nearest_code", trunk(nearest_code, codes=lambda: nn.Embedding(9, 6))),
    Odd("round", trunk(lambda m, x: m.b(Round.apply(m.a(x))))),
    Odd("round_loose", trunk(lambda m, x: m.b(Round.apply(F.linear(x, m.a.weight)))), auto="double_backward",
        reason=UNSEEN),
    Odd("round_two_derivatives", trunk(lambda m, x: m.b(RoundWithDerivative.apply(F.linear(x, m.a.weight)))),
        auto="double_backward", reason=UNSEEN),
    Odd("reversal", trunk(lambda m, x: m.b(Reversal.apply(m.a(x))))),
    Odd("reversal_loose", trunk(lambda m, x: m.b(Reversal.apply(F.linear(x, m.a.weight)))), auto="double_backward",
        reason=UNSEEN),
    Odd("once", trunk(lambda m, x: m.b(Once.apply(m.a(x))))),
    Odd("once_loose", trunk(lambda m, x: m.b(Once.apply(F.linear(x, m.a.weight)))), auto=None,
        reason=r"double_backward.*cannot be differentiated"),
    Odd("cut_loose", trunk(lambda m, x: m.b(Cut.apply(F.linear(x, m.a.weight)))), auto=None,
        reason=r"double_backward.*cannot be differentiated"),
    Odd("own_linear", trunk(lambda m, x: m.b(OwnLinear.apply(x, m.a.weight))), auto="double_backward", reason=UNSEEN),
    Odd("hook", trunk(hooked(lambda g: 0.3 * g)), auto="double_backward",
        reason=r"layerwise.*trunk\.a\.weight.*gradient hook.*jvp.*gradient hook"),
    Odd("hook_loose", trunk(lambda m, x: F.linear(x, m.a.weight) + hooked(lambda g: 0.3 * g)(m, x)),
        auto="double_backward", reason=HOOK),
    Odd("hook_unguarded", trunk(lambda m, x: F.linear(x, m.a.weight) + hooked(lambda g: 0.3 * g, guarded=False)(m, x)),
        auto="double_backward", reason=HOOK),
    Odd("hook_clips", trunk(hooked(lambda g: g.clamp(-1e-2, 1e-2))), auto=None, reason="double_backward"),
    Odd("module_hook", with_hooks(lambda m: m.b.register_full_backward_hook(lambda _, i, o: (2 * i[0],)))),
    Odd("module_pre_hook", with_hooks(lambda m: m.b.register_full_backward_pre_hook(lambda _, o: (2 * o[0],)))),
    Odd("module_hook_loose", with_hooks(lambda m: m.b.register_full_backward_hook(lambda _, i, o: (2 * i[0],)), loose),
        auto="double_backward", reason=r"jvp.*'trunk\.b'.*backward hook"),
    Odd("parameter_hook", with_hooks(lambda m: m.a.weight.register_hook(_mask_rows)), auto="double_backward",
        reason=r"layerwise.*trunk\.a\.weight.*gradient hook.*jvp.*trunk\.a\.weight.*gradient hook"),
    Odd("parameter_watched", with_hooks(lambda m: m.a.weight.register_hook(lambda g: None))),
    Odd("output_hook", with_hooks(lambda m: m.a.register_forward_hook(lambda _, i, out: 2 * out))),
    Odd("quantised", with_hooks(quantised)),
    Odd("checkpoint", trunk(lambda m, x: m.b(checkpoint(m.a, x, use_reentrant=False)))),
    Odd("rare", trunk(rare(0.5)), obs=_one_large, auto="jvp", reason=OUTSIDE),
    Odd("rare_small", trunk(rare(1e-3)), obs=_one_large, auto="jvp", reason=OUTSIDE),
    Odd("always", trunk(rare(0.5, 1.0)), obs=_one_large, auto="jvp", reason=OUTSIDE),
    Odd("rare_rows", trunk(rare_rows), obs=_one_large, auto="jvp", reason=OUTSIDE),
    Odd("transposed", trunk(lambda m, x: m.b(F.linear(torch.tanh(m.a(x)), m.a.weight.T) @ m.a.weight.T)), auto="jvp",
        reason=OUTSIDE),
    Odd("regularised", trunk(plain), regularised, auto="jvp", reason=r"actor\.weight.*outside its layer"),
    Odd("nested", trunk(lambda m, x: (lambda y: m.b(torch.tanh(m.b(y))))(torch.tanh(m.a(x))))),
    Odd("by_keyword", trunk(lambda m, x: m.b(torch.tanh(m.a(input=x)))), auto="jvp", reason=r"trunk\.a\.weight"),
    Odd("cells", lambda: ActorCritic(Cells(), 6), obs=zoo._sequences, actions=zoo._discrete_each_step, auto="jvp",
        reason=r"trunk\.cell\.weight_ih"),
    Odd("experts", lambda: ActorCritic(Experts(), 6), auto="jvp", reason="layerwise"),
    Odd("gated_norm", trunk(lambda m, x: m.norm(m.a(x), m.b(torch.tanh(m.a(x)))), norm=GatedRMSNorm), auto="jvp",
        reason=r"trunk\.norm\.weight"),
    Odd("added_in_place", trunk(added_in_place, norm=CopyingRMSNorm), auto="jvp",
        reason=r"trunk\.norm\.weight.*in place"),
    Odd("weight_norm", parametrised(parametrizations.weight_norm), auto="double_backward",
        reason=r"original0.*jvp.*_weight_norm_interface"),
    Odd("spectral_norm", parametrised(parametrizations.spectral_norm), auto="jvp", reason="original"),
    Odd("old_spectral_norm", parametrised(spectral_norm), auto="jvp", reason="weight_orig"),
    Odd("orthogonal", parametrised(parametrizations.orthogonal), auto="jvp", reason="original"),
]  # fmt: skip
assert ACTIONS
