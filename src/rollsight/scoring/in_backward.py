"""Every record's own gradient out of the backward that training makes anyway, and scores from them.

In the trainer's loss, record i pulls its log-probabilities with slopes d_i, (T,), and has the gradient G_i. Where the
target's slopes are a_i d_i and its objective's b_i d_i, for every record that either pulls,

    grad f = sum_i a_i G_i,   grad l_i = b_i G_i,   score_i = b_i <G_i, grad f>.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rollsight.distributed import Group, all_reduced, everywhere
from rollsight.errors import RollsightError
from rollsight.objectives import Objective
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.scoring.directions import Options, finished
from rollsight.scoring.gradients import Direction, in_float32
from rollsight.scoring.layers import Layer, Layers, Rows
from rollsight.scoring.one_pass import log_prob_slopes
from rollsight.scoring.problem import Problem, only_valid
from rollsight.scoring.scores import Scores
from rollsight.targets import Target


def all_linear(layers: Layers) -> bool:
    """Whether every trainable parameter is one of an `nn.Linear` that computes as such, as a LoRA adapter's are."""
    covered = {name for layer in layers for name in layer.names.values()}
    return covered == layers.parameters.keys() and all(issubclass(kind, nn.Linear) for kind in layers.kinds)


def gradient_bytes(layers: Layers, n: int) -> int:
    """What n records' own gradients take."""
    return n * sum(p.numel() * _kept_type(p).itemsize for p in layers.parameters.values())


class RecordGradients:
    """The own gradients of n records in the loss that is trained on, filled in by its backward, part by part.

    Between `open` and `close`, `begin(rows)` comes before each part's forward and `watch(log_probs)` after it; the
    part's backward, whenever it runs, does the rest. That training is bit by bit what it is without. What fails here
    never raises there: `failure` has it.

    failure: why the gradients are not to be used, None where they are.
    seconds: what the capture took.
    """

    def __init__(self, layers: Layers, n: int) -> None:
        """layers: of which `all_linear` holds."""
        self.failure: Exception | None = None
        self.seconds = 0.0
        self.parameters = layers.parameters
        self._layers, self._n, self._in_half = layers, n, False
        self._own = {
            name: torch.zeros(n, p.numel(), dtype=_kept_type(p), device=p.device)
            for name, p in layers.parameters.items()
        }
        self._order: list[Tensor] = []  # of each part, which records it has
        self._part = slice(0, 0)
        self._log_probs: list[Tensor] = []
        self._slopes: list[Tensor | None] = []
        self._handles: list[RemovableHandle] = []

    def open(self) -> None:
        """Put the hooks on the layers."""
        self._handles = [layer.module.register_forward_hook(partial(self._passed, layer)) for layer in self._layers]

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self, rows: Tensor) -> None:
        """The next part is of these records, (B,) their numbers."""
        self._order.append(rows)
        self._part = slice(self._part.stop, self._part.stop + len(rows))

    def watch(self, log_probs: Tensor) -> None:
        """(B, T) this part's log-probabilities, as the loss is about to be computed from them."""
        part = len(self._slopes)
        self._log_probs.append(log_probs.detach())
        self._slopes.append(None)

        def keep(slopes: Tensor) -> None:
            self._slopes[part] = slopes

        if log_probs.requires_grad:
            log_probs.register_hook(keep)

    def check(self, trained: Mapping[str, Tensor | None], group: Group | None) -> None:
        """`RollsightError` unless every record was captured, and the gradients add up to those that are trained with:
        the mean over the group's processes of each one's sum."""
        if self.failure is not None:
            raise self.failure
        taken = torch.cat(self._order) if self._order else torch.zeros(0)
        if len(taken.unique()) < self._n or len(taken) != self._n or any(slope is None for slope in self._slopes):
            raise RollsightError(f"the training's own backward gave {len(taken)} of {self._n} records' gradients")
        sums: Direction = {name: G.sum(0).view_as(self.parameters[name]) for name, G in self._own.items()}
        lengths: Direction = {name: G.norm(dim=1).sum()[None] for name, G in self._own.items()}
        if group is not None:
            sums, lengths = all_reduced([sums, lengths], group)
        processes = 1 if group is None else torch.distributed.get_world_size(group)
        pairs = [(total / processes, trained[name]) for name, total in sums.items()]
        missing = torch.stack([(total if grad is None else total - grad).norm() for total, grad in pairs])
        allowed = torch.cat(list(lengths.values())) / processes * (5e-2 if self._in_half else 1e-4)
        wrong = ~(missing <= allowed)
        if bool(wrong.any()):
            name = list(sums)[int(wrong.int().argmax())]
            raise RollsightError(
                f"{name!r}: the records' own gradients do not add up to the one that is trained with, so a gradient "
                "hook changes it or its layer computes something else"
            )

    def weighted_sum(self, weights: Tensor) -> Direction:
        """sum_i w_i G_i; weights: (n,), of the records by their numbers. A record of weight 0 plays no part, whatever
        its gradient is."""
        weights = weights[self._rows]
        total = self._summed(weights, slice(None))
        if bool((weights == 0).any()) and not all(bool(torch.isfinite(g).all()) for g in total.values()):
            kept = weights != 0
            return self._summed(weights[kept], kept)
        return total

    def _summed(self, weights: Tensor, rows: Rows) -> Direction:
        return {name: (weights.to(G) @ G[rows]).view_as(self.parameters[name]) for name, G in self._own.items()}

    def along(self, direction: Direction) -> Tensor:
        """(n,) <G_i, v>, by the records' numbers."""
        return self._numbered(sum(G @ direction[name].reshape(-1).to(G) for name, G in self._own.items()))

    def squares(self) -> Tensor:
        """(n,) <G_i, G_i>, by the records' numbers."""
        return self._numbered(sum(torch.linalg.vecdot(G, G) for G in self._own.values()))

    def log_probs(self) -> Tensor:
        """(n, T) as they were trained with, by the records' numbers."""
        return self._numbered(torch.cat(self._log_probs))

    def slopes(self) -> Tensor:
        """(n, T) of the loss that was trained with in the log-probabilities, by the records' numbers."""
        return self._numbered(torch.cat([slope for slope in self._slopes if slope is not None]))

    @property
    def _rows(self) -> Tensor:
        return torch.cat(self._order)

    def _numbered(self, column: Any) -> Tensor:
        numbered = torch.empty_like(column)
        numbered[self._rows] = column
        return numbered

    def _passed(self, layer: Layer, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not (isinstance(output, Tensor) and output.requires_grad and args):
            return None
        return _Passing.apply(output, args[0].detach(), partial(self._take, layer))  # type: ignore[no-untyped-call]

    def _take(self, layer: Layer, saved: Callable[[], Tensor], g_out: Tensor) -> None:
        started = time.perf_counter()
        try:
            self._add(layer, saved(), g_out)
        except Exception as error:  # in the middle of training's backward, which must go on
            self.failure = self.failure or error
        self.seconds += time.perf_counter() - started

    def _add(self, layer: Layer, x: Tensor, g_out: Tensor) -> None:
        part = self._part
        n = part.stop - part.start
        if not len(x) == len(g_out) == n:
            name = next(iter(layer.names.values()))
            raise RollsightError(f"{name!r}: its layer is called with {len(x)} rows for {n} records")
        self._in_half = self._in_half or g_out.dtype in (torch.bfloat16, torch.float16)
        x, g = (in_float32(tensor).reshape(n, -1, tensor.shape[-1]) for tensor in (x.to(g_out.dtype), g_out))
        for name, full in layer.names.items():
            own = self._own[full][part]
            if name == "weight":
                own.view(n, *self.parameters[full].shape).baddbmm_(g.transpose(1, 2).to(own), x.to(own))
            else:
                own.add_(g.sum(1))


class _Passing(torch.autograd.Function):
    """Hands on a layer's output and its gradient as they are; the backward tells `take` the layer's input and the
    gradient. As the input is saved like any other, activation checkpointing computes it again."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, take: Callable[[Callable[[], Tensor], Tensor], None]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.take = take
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, g_out: Tensor) -> tuple[Tensor, None, None]:
        ctx.take(lambda: ctx.saved_tensors[0], g_out)
        return g_out, None, None


def score_captured(
    gradients: RecordGradients,
    policy: Policy,
    records: Records,
    target: Target,
    objective: Objective,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    leave_self_out: bool = False,
    group: Group | None = None,
) -> Scores | None:
    """What `score_records` gives, from gradients that training has captured of these records and not used yet.

    None (on every rank of the group) where the loss does not pull each record's log-probabilities as target and
    objective do, up to a factor of its own, or the target is measured on other records.
    """
    valid = records.valid_rows
    part = only_valid(records) if group is None else records.take(valid.nonzero().flatten())
    make = Problem.local if group is None else partial(Problem.across, group)
    problem = make(policy, part, target, objective, chunk_size=max(len(part), 1))
    factors = _factors(gradients, problem, valid) if problem.same_records else None
    if not everywhere(factors is not None, group) or factors is None:
        return None
    a, b = factors
    options = Options(optimizer=optimizer)
    direction = finished(problem, options, gradients.weighted_sum(a), lambda: gradients.weighted_sum(b))
    values = b * gradients.along(direction)
    if leave_self_out:
        values = values - a * b * gradients.squares()
    scores = Scores(
        torch.where(valid, values, 0.0),
        None,
        records.ids,
        valid,
        target=target.name,
        normalisation=objective.normalisation,
        backend="in_backward",
        reason="every record's own gradient, from the training's backward",
    )
    scores.check_finite()
    return scores


def _factors(gradients: RecordGradients, problem: Problem, valid: Tensor) -> list[Tensor] | None:
    """(n,) a and b of all records, 0 where not valid."""
    slopes = log_prob_slopes(Evaluation(gradients.log_probs()[valid]), problem.target_value, problem.objective_terms)
    if slopes is None:
        return None
    trained = gradients.slopes()[valid]
    factors = [_factor(wanted, trained) for wanted in slopes]
    whole = []
    for factor in factors:
        if factor is None:
            return None
        column = factor.new_zeros(len(valid))
        column[valid] = factor
        whole.append(column)
    return whole


def _factor(wanted: Tensor, trained: Tensor) -> Tensor | None:
    """(n,) k with wanted = k * trained, both (n, T); None where there is none."""
    trained = trained.to(wanted)
    if not len(trained):
        return wanted.new_zeros(0)
    pivot = trained.abs().argmax(1, keepdim=True)
    largest = trained.gather(1, pivot)
    factor = torch.where(largest != 0, wanted.gather(1, pivot) / largest, 0.0)
    deviation = (wanted - factor * trained).abs().amax(1)
    return factor.squeeze(1) if bool((deviation <= 1e-4 * wanted.abs().amax(1)).all()) else None


def _kept_type(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)
