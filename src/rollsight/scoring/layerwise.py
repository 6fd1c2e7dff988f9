"""Layer-wise scoring: for a layer linear in its parameters, <grad l_i, v> = <g_out_i, layer(x_i; v)>.

One forward and backward captures each call's input x and output gradient g_out; per-record gradients are never formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from rollsight.errors import RollsightError
from rollsight.objectives import Objective
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.scoring.directions import Direction, check_attached, inner

Slices = dict[str, Tensor]
Slopes = Mapping[str, Tensor | None]


class NotCovered(RollsightError):
    """The layer-wise identity does not hold for this policy; the message names the parameter."""


def _linear(m: Any, x: Tensor, v: Slices) -> Tensor:
    return F.linear(x, v["weight"], v.get("bias"))


def _conv(m: Any, x: Tensor, v: Slices) -> Tensor:
    out: Tensor = m._conv_forward(x, v["weight"], v.get("bias"))
    return out


def _embedding(m: Any, x: Tensor, v: Slices) -> Tensor:
    return F.embedding(x, v["weight"], m.padding_idx)


def _layer_norm(m: Any, x: Tensor, v: Slices) -> Tensor:
    return _affine(F.layer_norm(x, m.normalized_shape, None, None, m.eps), v)


def _rms_norm(m: Any, x: Tensor, v: Slices) -> Tensor:
    return _affine(F.rms_norm(x, m.normalized_shape, None, m.eps), v)


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
LAYERS: dict[type[nn.Module], Callable[[Any, Tensor, Slices], Tensor]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
}


def _layer_of(module: nn.Module) -> Callable[[Any, Tensor, Slices], Tensor] | None:
    """The layer's map, for the class itself and for subclasses that leave `forward` alone."""
    parameters = dict(module.named_parameters(recurse=False))
    for kind, apply in LAYERS.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            # A computed weight (weight_norm) is no parameter, and a parameter of another name is no part of the map.
            if "weight" not in parameters or not parameters.keys() <= {"weight", "bias"}:
                return None
            unusual = isinstance(module, nn.Embedding) and (module.scale_grad_by_freq or module.max_norm is not None)
            return None if unusual else apply
    return None


@dataclass
class _Call:
    """One call of one layer: its input, where its output stands in the graph, and its parameters' full names."""

    module: nn.Module
    names: dict[str, str]
    x: Tensor
    edge: GradientEdge

    def along(self, direction: Direction, g_out: Tensor) -> Tensor:
        """(n,) <g_out_i, layer(x_i; v)>, accumulated in float32 at least."""
        apply = _layer_of(self.module)
        assert apply is not None
        out = apply(self.module, self.x, self.slices(direction))
        return (g_out * out).flatten(1).sum(1, dtype=torch.promote_types(out.dtype, torch.float32))

    def slices(self, direction: Direction) -> Slices:
        """The direction's part for this layer; zeros for a frozen parameter beside a trainable one."""
        parameters = dict(self.module.named_parameters(recurse=False))
        return {
            name: direction[full] if (full := self.names.get(name)) else torch.zeros_like(parameter)
            for name, parameter in parameters.items()
        }

    def gradient(self, g_out: Tensor) -> dict[str, Tensor]:
        """sum_i of the layer's parameter gradient for output gradients g_out, by full name."""
        apply = _layer_of(self.module)
        assert apply is not None
        parameters = dict(self.module.named_parameters(recurse=False))
        leaves = {name: parameters[name].detach().requires_grad_() for name in self.names}
        fixed = {name: p.detach() for name, p in parameters.items() if name not in self.names}
        out = apply(self.module, self.x, {**fixed, **leaves})
        grads = torch.autograd.grad(out, list(leaves.values()), g_out)
        return dict(zip(self.names.values(), grads, strict=True))


@contextmanager
def capture(policy: Policy) -> Iterator[list[_Call]]:
    """Record every call of a covered layer that owns trainable parameters."""
    trainable = policy.trainable()
    calls: list[_Call] = []
    handles = []

    def hook_of(names: dict[str, str]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # The edge, not the tensor: a following in-place activation would move the tensor on.
            if isinstance(output, Tensor) and output.requires_grad and args:
                calls.append(_Call(module, names, args[0].detach(), get_gradient_edge(output)))

        return hook

    for prefix, module in policy.module.named_modules():
        names = {
            name: full
            for name, _ in module.named_parameters(recurse=False)
            if (full := f"{prefix}.{name}" if prefix else name) in trainable
        }
        if names and _layer_of(module) is not None:
            handles.append(module.register_forward_hook(hook_of(names)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def check_coverage(policy: Policy, records: Records, objective: Objective) -> None:
    """Raise `NotCovered`, naming the parameter, unless every trainable parameter that the loss reaches sits in a
    covered layer
    that is called with the records as leading dimension.

    One record is evaluated: a call whose leading dimension is not 1 then is not over records, whatever its size in a
    full buffer.
    """
    record = records.take(slice(0, 1))
    with capture(policy) as calls:
        losses = objective.losses(policy(record), record)
    covered: set[str] = set()
    for call in calls:
        if call.x.dim() == 0 or call.x.shape[0] != 1:
            raise _not_over_records(call, "one record")
        covered.update(call.names.values())
    parameters = policy.trainable()
    check_attached(losses)
    grads = torch.autograd.grad(losses.sum(), list(parameters.values()), allow_unused=True)
    uncovered = [name for name, g in zip(parameters, grads, strict=True) if g is not None and name not in covered]
    if uncovered:
        raise NotCovered(
            f"backend 'layerwise' does not cover the trainable parameter(s) {', '.join(map(repr, uncovered[:5]))}: "
            "not part of a called layer that is linear in its parameters; use backend='jvp'."
        )


def derivatives(policy: Policy, records: Records, objective: Objective, directions: list[Direction]) -> Tensor:
    """(n, M): <grad l_i, v_m>; for sequences the sum over tokens. Raises `NotCovered` where sum_i s_i != <grad sum_i
    l_i, v>."""
    parameters = policy.trainable()
    with capture(policy) as calls:
        losses = objective.losses(policy(records), records)
    edges = [call.edge for call in calls]
    grads = torch.autograd.grad(losses.sum(), [*edges, *parameters.values()], allow_unused=True)
    total = dict(zip(parameters, grads[len(edges) :], strict=True))
    columns = []
    for direction in directions:
        columns.append(_project(calls, grads, direction, losses, total))
    return torch.stack(columns, -1)


def _project(
    calls: list[_Call], g_outs: tuple[Tensor | None, ...], direction: Direction, like: Tensor, gradient: Slopes
) -> Tensor:
    """(n,) the calls' products, added up and checked.

    gradient: by autograd, of the sum over records. The sum of the products must be its inner product with the
    direction, which catches tied and functional uses of weights; `NotCovered` names the weight.
    """
    column = torch.zeros(len(like), dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    for call, g_out in zip(calls, g_outs, strict=False):
        if g_out is not None:
            if not len(call.x) == len(g_out) == len(like):
                raise _not_over_records(call, f"{len(like)} record(s)")
            column += call.along(direction, g_out)
    tolerance = 1e-9 if column.dtype == torch.float64 else 1e-4
    total, expected, scale = float(column.sum()), inner(gradient, direction), float(column.abs().sum())
    if abs(total - expected) > tolerance * (scale + abs(expected)):
        name = _most_missed(calls, g_outs, direction, gradient)
        raise NotCovered(
            f"backend 'layerwise' does not cover {name!r}: the scores add up to {total:.6g} but the gradient gives "
            f"{expected:.6g}, so this weight is tied or used outside its layer; use backend='jvp'."
        )
    return column


def _most_missed(calls: list[_Call], g_outs: tuple[Tensor | None, ...], direction: Direction, gradient: Slopes) -> str:
    """The parameter whose calls are furthest from its gradient."""
    missed = {name: 0.0 if (g := gradient[name]) is None else float((g * v).sum()) for name, v in direction.items()}
    for call, g_out in zip(calls, g_outs, strict=False):
        for name in call.names.values():
            if g_out is not None:
                only = {full: v if full == name else torch.zeros_like(v) for full, v in direction.items()}
                missed[name] -= float(call.along(only, g_out).sum())
    return max(missed, key=lambda name: abs(missed[name]))


def _not_over_records(call: _Call, records: str) -> NotCovered:
    name = next(iter(call.names.values()))
    return NotCovered(
        f"backend 'layerwise' does not cover {name!r}: its layer is called with shape {tuple(call.x.shape)} for "
        f"{records}, so its leading dimension is not the records'; use backend='jvp'."
    )


class LogProbJacobian:
    """The Jacobian J of (n,) log-probabilities as a linear operator: `J.pushforward(v)` and `J.pullback(u)`, from one
    forward
    and one backward.

    The backward is seeded with weights w, so that it yields `seed_gradient` = J^T w, by autograd, on the way; each
    record's own
    output gradient is the captured one divided by w_i. Zero weights are replaced by ones below the dtype's resolution.
    """

    def __init__(self, policy: Policy, records: Records, weights: Tensor) -> None:
        parameters = policy.trainable()
        with capture(policy) as self._calls:
            self.evaluation = policy(records)
        log_prob = self.evaluation.log_prob
        largest = weights.abs().max()
        smallest = torch.where(largest > 0, 0.1 * torch.finfo(log_prob.dtype).eps * largest, 1.0)
        self._weights = torch.where(weights.abs() < smallest, smallest, weights)
        edges = [call.edge for call in self._calls]
        grads = torch.autograd.grad(log_prob, [*edges, *parameters.values()], self._weights, allow_unused=True)
        self._g_outs = grads[: len(edges)]
        self.seed_gradient: Direction = {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(parameters.items(), grads[len(edges) :], strict=True)
        }

    def pushforward(self, direction: Direction) -> Tensor:
        """(n,) <grad log pi_i, v>; raises `NotCovered` like `derivatives`."""
        column = _project(self._calls, self._g_outs, direction, self._weights, self.seed_gradient)
        return column / self._weights

    def pullback(self, weights: Tensor) -> Direction:
        """sum_i u_i grad log pi_i."""
        if torch.equal(weights, self._weights):
            return self.seed_gradient
        total = {name: torch.zeros_like(g) for name, g in self.seed_gradient.items()}
        ratio = weights / self._weights
        rows = ratio.nonzero().flatten()
        for call, g_out in zip(self._calls, self._g_outs, strict=True):
            if g_out is None:
                continue
            part = _Call(call.module, call.names, call.x[rows], call.edge)
            scaled = g_out[rows] * ratio[rows].view(-1, *[1] * (g_out.dim() - 1))
            for name, grad in part.gradient(scaled).items():
                total[name] += grad
        return total
