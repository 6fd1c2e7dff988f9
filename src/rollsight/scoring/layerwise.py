"""Layer-wise scoring: for a layer linear in its parameters, <grad l_i, v> = <g_out_i, layer(x_i; v)>.

One forward and backward captures each call's input x and output gradient g_out; per-record gradients are never formed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rollsight.objectives import Objective
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.scoring.covering import NotCovered
from rollsight.scoring.gradients import Direction, check_attached, in_float32, inner
from rollsight.scoring.graph import check_uses
from rollsight.scoring.layers import EVERY, Call, Layers, Rows

_LARGE = 2.0**10  # a gradient that is not proportional to its seed (clipped by a hook) is not a sum over records
_Calls: TypeAlias = tuple[tuple[Any, ...], ...]
_covered: WeakKeyDictionary[nn.Module, _Calls] = WeakKeyDictionary()  # the calls that were last found to be covered


def check_coverage(layers: Layers, records: Records, objective: Objective) -> None:
    """Raise `NotCovered`, naming the parameter, unless every trainable parameter that the loss reaches sits in a
    covered layer that is called with the records as leading dimension.

    A module is looked at once: `forward` sees whether it makes other calls later, `Backward` whether a parameter is
    used otherwise.
    """
    if layers.policy.module not in _covered:
        _probe(layers, records, objective)


def forward(layers: Layers, records: Records, objective: Objective) -> tuple[Evaluation, list[Call]]:
    """The evaluation of the records and its calls, after `check_coverage`."""
    check_coverage(layers, records, objective)
    evaluation, calls = layers.forward(records)
    check_calls(layers, calls, records, objective)
    return evaluation, calls


def check_calls(layers: Layers, calls: list[Call], records: Records, objective: Objective) -> None:
    """Raise `NotCovered` unless a forward of the records made the calls that `check_coverage` has seen."""
    made = _described(calls)
    if made != _covered[layers.policy.module]:
        _probe(layers, records, objective)
        if made != _covered[layers.policy.module]:
            raise NotCovered(
                "layerwise", f"this policy: it calls its layers otherwise for one record than for {len(records)}"
            )


def _probe(layers: Layers, records: Records, objective: Objective) -> None:
    """Evaluate one record: a call whose leading dimension is not 1 then is not over records, whatever its size in the
    full buffer. (`Backward` finds the calls that have 1 there whatever the number of records.) And each weight's
    gradient by its calls must be autograd's, large or small."""
    record = records.take(slice(0, 1))
    evaluation, calls = layers.forward(record)
    for call in calls:
        if call.x.dim() == 0 or call.x.shape[0] != 1:
            raise _not_over_records(call, 1)
    terms = objective.terms(evaluation, record)
    if terms.requires_grad:
        check_uses(layers, calls, terms)
    large = Backward(layers, calls, evaluation.output, torch.full_like(evaluation.output, _LARGE))
    large.compare(large.total.keys())
    again, again_calls = layers.forward(record)
    small = Backward(layers, again_calls, again.output, torch.full_like(again.output, 1 / _LARGE)).total
    for name, g in large.total.items():
        if float((g - _LARGE**2 * small[name]).norm()) > large.tolerance * float(g.norm()):
            raise NotCovered(
                "layerwise", f"{name!r}: its gradient is not in proportion to the loss, so a gradient hook may clip it"
            )
    _covered[layers.policy.module] = _described(calls)


def _described(calls: list[Call]) -> _Calls:
    """Which parameters each call uses, and on inputs of how many dimensions, and which of them are 1. (Sequences are
    longer in one buffer than in the next; a leading dimension that is not the records' cannot hide behind more than
    1.)"""
    return tuple((*call.layer.names.values(), *(min(size, 2) for size in call.x.shape[1:])) for call in calls)


def _not_over_records(call: Call, n: int) -> NotCovered:
    name = next(iter(call.layer.names.values()))
    return NotCovered(
        "layerwise",
        f"{name!r}: its layer is called with shape {tuple(call.x.shape)} for {n} record(s), so its leading dimension "
        "is not the records'",
    )


class Backward:
    """One backward from sum_i w_i y_i: `total`, its gradient in the parameters that it reaches, and the output gradient
    of every call."""

    def __init__(self, layers: Layers, calls: list[Call], y: Tensor, w: Tensor | None = None) -> None:
        """calls, y: of one forward of the layers, y with leading n; w: as y, None for ones."""
        check_attached(y)
        check_uses(layers, calls, y)
        edges = [call.edge for call in calls]
        inputs: list[Any] = [*edges, *layers.parameters.values()]
        w = torch.ones_like(y) if w is None else w
        grads = torch.autograd.grad(y, inputs, w, allow_unused=True)
        found = list(zip(layers.parameters, grads[len(edges) :], strict=True))
        self.total: Direction = {name: in_float32(g) for name, g in found if g is not None}
        half = any(g.dtype in (torch.bfloat16, torch.float16) for _, g in found if g is not None)
        self.reached = [(call, g) for call, g in zip(calls, grads, strict=False) if g is not None]
        for call, g_out in self.reached:
            if call.x.dim() == 0 or not len(call.x) == len(g_out) == len(y):
                raise _not_over_records(call, len(y))
            if call.x._version != call.version:
                name = next(iter(call.layer.names.values()))
                raise NotCovered("layerwise", f"{name!r}: the input of its layer is changed in place after the call")
        self._y = y.detach()
        self.tolerance = 5e-2 if half else 1e-9 if y.dtype == torch.float64 else 1e-4
        hooked = {name for name, p in layers.parameters.items() if p._backward_hooks}
        self.compare(hooked & self.total.keys())

    def compare(self, names: Iterable[str]) -> None:
        """`NotCovered` unless these parameters' gradients by the calls of their layers are autograd's."""
        for name in names:
            calls = [(call, g_out) for call, g_out in self.reached if name in call.layer.names.values()]
            parts = [call.gradient(g_out, EVERY)[name] for call, g_out in calls]
            missing = float((self.total[name] - sum(parts)).norm())
            if missing > self.tolerance * (float(self.total[name].norm()) + sum(float(part.norm()) for part in parts)):
                raise NotCovered(
                    "layerwise",
                    f"{name!r}: its gradient by its layer's calls is {missing:.3g} from autograd's, so a gradient hook "
                    "or a custom autograd.Function changes it, or the layer computes something else",
                )

    def along(self, direction: Direction) -> Tensor:
        """(n,) each record's part of <total, v>, in float32 at least.

        The parts must add up to it; `NotCovered` names the weight.
        """
        column = self._y.new_zeros(len(self._y), dtype=torch.promote_types(self._y.dtype, torch.float32))
        for call, g_out in self.reached:
            column += call.along(direction, g_out)
        found, scale, expected = float(column.sum()), float(column.abs().sum()), inner(self.total, direction)
        if abs(found - expected) > self.tolerance * (scale + abs(expected)):
            raise NotCovered(
                "layerwise",
                f"{self._most_missed(direction)!r}: the scores add up to {found:.6g} but autograd's gradient gives "
                f"{expected:.6g}, so its layer computes something else for some records",
            )
        return column

    def record_gradients(self) -> Direction:
        """(n, size) every record's own gradient in each parameter reached, where all layers are `nn.Linear`."""
        rows: Direction = {}
        for call, g_out in self.reached:
            for name, grads in call.record_gradients(g_out).items():
                rows[name] = rows[name] + grads if name in rows else grads
        for name, grads in rows.items():
            missing, scale = float((grads.sum(0) - self.total[name].flatten()).norm()), float(grads.norm(dim=1).sum())
            if missing > self.tolerance * scale:
                raise NotCovered(
                    "layerwise",
                    f"{name!r}: the records' gradients miss {missing:.6g} of autograd's, so its layer computes "
                    "something else for some records",
                )
        return rows

    def _most_missed(self, direction: Direction) -> str:
        """The parameter whose calls are furthest from its gradient."""
        missed = {name: float((g * direction[name]).sum()) for name, g in self.total.items()}
        for call, g_out in self.reached:
            for name in call.layer.names.values():
                only = {full: v if full == name else torch.zeros_like(v) for full, v in direction.items()}
                missed[name] -= float(call.along(only, g_out).sum())
        return max(missed, key=lambda name: abs(missed[name]))


def derivatives(policy: Policy, records: Records, objective: Objective, directions: list[Direction]) -> Tensor:
    """(n, M): <grad l_i, v_m>; for sequences the sum over tokens."""
    layers = Layers(policy)
    evaluation, calls = forward(layers, records, objective)
    backward = Backward(layers, calls, objective.terms(evaluation, records))
    return torch.stack([backward.along(direction) for direction in directions], -1)


class LogProbJacobian:
    """The Jacobian J of (n,) log-probabilities as a linear operator: `J.pushforward(v)` and `J.pullback(u)`, after one
    forward (`evaluation`, `calls`) and one backward.

    The backward is seeded with weights w, so that it yields `seed_gradient` = J^T w, by autograd, on the way; each
    record's own output gradient is the captured one divided by w_i.
    """

    def __init__(self, layers: Layers, evaluation: Evaluation, calls: list[Call], weights: Tensor) -> None:
        self.evaluation = evaluation
        size = weights.abs()
        least, most = (float(x) for x in size.aminmax())
        # A record of weight zero needs its output gradient too: weigh it below what the sum over records resolves.
        floor = torch.finfo(weights.dtype).eps * most / len(weights) if most > 0 else 1.0
        self._weights = weights if least >= floor else torch.where(size < floor, floor, weights)
        self._backward = Backward(layers, calls, evaluation.log_prob, self._weights)
        total = self._backward.total
        self.seed_gradient = total if most > 0 else {name: torch.zeros_like(g) for name, g in total.items()}

    def pushforward(self, direction: Direction) -> Tensor:
        """(n,) <grad log pi_i, v>; raises `NotCovered` as `Backward.along` does."""
        return self._backward.along(direction) / self._weights

    def pullback(self, weights: Tensor, rows: Rows = EVERY) -> Direction:
        """sum_i u_i grad log pi_i over the records at `rows`; weights: (n,), of all records."""
        ratio = weights[rows] / self._weights[rows]
        total: Direction = {}
        for call, g_out in self._backward.reached:
            part = g_out[rows]
            for name, grad in call.gradient(part * ratio.view(-1, *[1] * (part.dim() - 1)), rows).items():
                total[name] = total[name] + grad if name in total else grad
        return {name: total[name] if name in total else torch.zeros_like(g) for name, g in self.seed_gradient.items()}
