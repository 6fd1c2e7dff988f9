"""Layers that are linear in their parameters, and the capture of their calls in one forward of a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.scoring.gradients import Direction, check_attached, in_float32

Slices: TypeAlias = dict[str, Tensor]
Rows: TypeAlias = slice | Tensor
Map: TypeAlias = Callable[[Any, Tensor, Slices], Tensor]
EVERY = slice(None)


def _linear(m: Any, x: Tensor, v: Slices) -> Tensor:
    return F.linear(x, v["weight"], v.get("bias"))


def _conv(m: Any, x: Tensor, v: Slices) -> Tensor:
    out: Tensor = m._conv_forward(x, v["weight"], v.get("bias"))
    return out


def _embedding(m: Any, x: Tensor, v: Slices) -> Tensor:
    out = F.embedding(x, v["weight"])
    # A row of padding has no gradient at the embedding, whatever the direction holds there (a tied head moves it).
    return out if m.padding_idx is None else out.masked_fill((x == m.padding_idx % len(v["weight"]))[..., None], 0.0)


def _embedding_bag(m: Any, x: Tensor, v: Slices) -> Tensor:
    return F.embedding_bag(x, v["weight"], mode=m.mode, padding_idx=m.padding_idx)


def _layer_norm(m: Any, x: Tensor, v: Slices) -> Tensor:
    return _affine(F.layer_norm(x, m.normalized_shape, None, None, m.eps), v)


def _rms_norm(m: Any, x: Tensor, v: Slices) -> Tensor:
    return _affine(F.rms_norm(x, m.normalized_shape, None, m.eps), v)


def _hugging_face_rms_norm(m: Any, x: Tensor, v: Slices) -> Tensor:
    """Both forms, w * x / rms(x) and (1 + w) * x / rms(x), have this derivative along v."""
    eps = m.variance_epsilon if hasattr(m, "variance_epsilon") else m.eps
    return F.rms_norm(x, x.shape[-1:], None, eps) * v["weight"]


def _transposed_linear(m: Any, x: Tensor, v: Slices) -> Tensor:
    return F.linear(x, v["weight"].T, v.get("bias"))


def _group_norm(m: Any, x: Tensor, v: Slices) -> Tensor:
    return _affine(F.group_norm(x, m.num_groups, None, None, m.eps), _channels(v, x))


def _batch_norm(m: Any, x: Tensor, v: Slices) -> Tensor:
    normed = F.batch_norm(x, m.running_mean, m.running_var, None, None, False, 0.0, m.eps)
    return _affine(normed, _channels(v, x))


def _affine(normed: Tensor, v: Slices) -> Tensor:
    scaled = normed * v["weight"]
    return scaled + v["bias"] if "bias" in v else scaled


def _channels(v: Slices, x: Tensor) -> Slices:
    return {name: part.view(-1, *[1] * (x.dim() - 2)) for name, part in v.items()}


# A layer is one line: its class, and the map that is linear in its parameters.
LAYERS: dict[type[nn.Module], Map] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding_bag,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
}


def _layer_of(module: nn.Module, parameters: Set[str]) -> Map | None:
    """The layer's map, for the class itself and for subclasses that leave `forward` alone."""
    for kind, apply in LAYERS.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            # A computed weight (weight_norm) is not a parameter; a parameter of another name is not part of the map.
            if "weight" not in parameters or not parameters <= {"weight", "bias"}:
                return None
            return None if isinstance(module, nn.EmbeddingBag) and module.mode == "max" else apply
    return _hugging_face_layer_of(module) if parameters <= {"weight", "bias"} else None


def _hugging_face_layer_of(module: nn.Module) -> Map | None:
    """Layers of transformers, known by name because the lower floors import no host (each model has an RMSNorm of its
    own). Whatever else bears such a name fails the comparison with autograd."""
    name = type(module).__name__
    if name.endswith("RMSNorm") and (hasattr(module, "variance_epsilon") or hasattr(module, "eps")):
        return _hugging_face_rms_norm
    return _transposed_linear if name == "Conv1D" else None


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer and how to compute it.

    module: the layer.
    apply: its map, linear in its parameters.
    names: its trainable parameters' names -> their full names in the policy.
    frozen: its frozen parameters by name.
    """

    module: nn.Module
    apply: Map
    names: dict[str, str]
    frozen: dict[str, nn.Parameter]

    def slices(self, direction: Direction, x: Tensor) -> Slices:
        """The direction's part for this layer, to be applied to x; zeros for a frozen parameter next to a trainable
        one."""
        part = {name: direction[full] for name, full in self.names.items()}
        part |= {name: torch.zeros_like(parameter) for name, parameter in self.frozen.items()}
        return {name: v.to(x.dtype) for name, v in part.items()} if x.is_floating_point() else part


@dataclass(eq=False)
class Call:
    """One call of one layer.

    layer: the layer.
    x: its input.
    version: the input tensor's version at the call; a later one means it was changed in place.
    edge: where its output stands in the graph.
    """

    layer: Layer
    x: Tensor
    version: int
    edge: GradientEdge

    def along(self, direction: Direction, g_out: Tensor) -> Tensor:
        """(n,) <g_out_i, layer(x_i; v)>, accumulated in float32 at least."""
        out = self.layer.apply(self.layer.module, self.x, self.layer.slices(direction, self.x))
        return in_float32(out).mul_(g_out).flatten(1).sum(1)

    def record_gradients(self, g_out: Tensor) -> dict[str, Tensor]:
        """(n, size) each record's own parameter gradient, by full name, of an `nn.Linear`."""
        x, g = (in_float32(part.reshape(len(part), -1, part.shape[-1])) for part in (self.x, g_out))
        grads = {"weight": lambda: torch.einsum("nto,nti->noi", g, x).flatten(1), "bias": lambda: g.sum(1)}
        return {full: grads[name]() for name, full in self.layer.names.items()}

    def gradient(self, g_out: Tensor, rows: Rows) -> dict[str, Tensor]:
        """The layer's parameter gradient, summed over `rows` with their output gradients g_out, by full name."""
        x, g_out, layer = self.x[rows], in_float32(g_out), self.layer
        x = in_float32(x) if x.is_floating_point() else x
        if isinstance(layer.module, nn.Linear):
            flat = g_out.flatten(0, -2)
            # einsum("no,ni->oi"), which would round otherwise in small layers and cost 15 microseconds more
            grads = {"weight": lambda: flat.T @ x.flatten(0, -2), "bias": lambda: flat.sum(0)}
            return {full: grads[name]() for name, full in layer.names.items()}
        leaves = {name: in_float32(getattr(layer.module, name).detach()).requires_grad_() for name in layer.names}
        out = layer.apply(layer.module, x, {**{name: in_float32(p) for name, p in layer.frozen.items()}, **leaves})
        return dict(zip(layer.names.values(), torch.autograd.grad(out, list(leaves.values()), g_out), strict=True))


class Layers:
    """A policy's covered layers, looked up once for one use of it. Tied weights bear one name wherever they are."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.parameters = policy, policy.trainable()
        self._layers: list[Layer] = []
        trained = {id(p): name for name, p in self.parameters.items()}
        for module in policy.module.modules():
            own = {name: p for name, p in module._parameters.items() if p is not None}
            names = {name: trained[id(p)] for name, p in own.items() if id(p) in trained}
            if names and (apply := _layer_of(module, own.keys())) is not None:
                self._layers.append(Layer(module, apply, names, {k: p for k, p in own.items() if k not in names}))

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers)

    @property
    def kinds(self) -> set[type[nn.Module]]:
        """The classes of the layers."""
        return {type(layer.module) for layer in self._layers}

    def forward(self, records: Records) -> tuple[Evaluation, list[Call]]:
        """The policy's evaluation of the records, and the calls of covered layers that it depends on."""
        calls: list[Call] = []
        handles = [layer.module.register_forward_hook(_hook_of(layer, calls), prepend=True) for layer in self._layers]
        try:
            evaluation = self.policy(records)
        finally:  # before any backward, in which activation checkpointing calls the layers again
            for handle in handles:
                handle.remove()
        check_attached(evaluation.output)
        return evaluation, calls


def _hook_of(layer: Layer, calls: list[Call]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # The edge, not the tensor: a following in-place activation would move the tensor on.
        if isinstance(output, Tensor) and output.requires_grad and args:
            calls.append(Call(layer, args[0].detach(), args[0]._version, get_gradient_edge(output)))

    return hook
