"""The uses of parameters in an autograd graph, against the calls of their layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import Tensor

from rollsight.scoring.covering import NotCovered
from rollsight.scoring.layers import Call, Layers

_LEAF = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]
_CAST, _REENTRANT = "ToCopyBackward0", "CheckpointFunctionBackward"


def check_uses(layers: Layers, calls: Sequence[Call], y: Tensor) -> None:
    """Raise `NotCovered`, naming the parameter, unless every use of a trainable parameter in y's graph is a call of a
    covered layer. Exact in every precision, for every record of the buffer."""
    uses, nodes = _uses(y)
    called = Counter(full for call in calls if call.edge.node in nodes for full in call.layer.names.values())
    found = {name: n for name, p in layers.parameters.items() if (n := uses[id(p)]) != called[name]}
    loose = [name for name in found if not called[name]]
    if loose:
        raise NotCovered(
            "layerwise",
            f"the trainable parameter(s) {', '.join(map(repr, loose[:5]))}: not part of a called layer that is linear "
            "in its parameters",
        )
    for name, n in found.items():
        raise NotCovered(
            "layerwise",
            f"{name!r}: it has {n} use(s) in the forward and its layer is called {called[name]} time(s), so it is used "
            "outside its layer too",
        )


def _uses(y: Tensor) -> tuple[Counter[int], Set[Any]]:
    """How many edges of the graph lead to each parameter, by id, and the graph's nodes.

    A cast right above a parameter counts as often as it is used: autocast casts a weight once for all calls.
    """
    uses: Counter[int] = Counter()
    casts: list[tuple[Any, int]] = []
    edges_to_casts: Counter[Any] = Counter()
    seen, waiting = {y.grad_fn}, [y.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        kind = type(node).__name__
        if kind == _REENTRANT:
            raise NotCovered("layerwise", "reentrant activation checkpointing: use_reentrant=False is covered")
        for child, _ in node.next_functions:
            if child is None:
                continue
            if type(child) is _LEAF:
                if kind == _CAST:
                    casts.append((node, id(child.variable)))
                else:
                    uses[id(child.variable)] += 1
                continue
            if type(child).__name__ == _CAST:
                edges_to_casts[child] += 1
            if child not in seen:
                seen.add(child)
                waiting.append(child)
    for node, parameter in casts:
        uses[parameter] += max(edges_to_casts[node], 1)
    return uses, seen
