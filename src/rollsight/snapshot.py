"""`Snapshot`: the frozen round. Everything its update depended on, so that it can be replayed and traced anywhere."""

from __future__ import annotations

import io
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from os import PathLike
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from rollsight import objectives, targets
from rollsight.errors import RollsightError
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.scoring import Scores, score_records
from rollsight.scoring.score import Backend
from rollsight.update import Semantic, Step, UpdateRule, run_update

_FORMAT = 1
_ORDER = 0x0DE5  # the purpose in the key of a replay's own minibatch order


@dataclass(frozen=True, eq=False)
class Replay:
    """What a replayed round ended in.

    policy: trained, a copy of the snapshot's; steps: optimiser steps taken; semantic: "repack" or "mask".
    step_size: the sum of learning rate x clip factor over the steps.
    counterfactual: always "replay": the buffer, its advantages and its returns stayed as they were.
    """

    policy: Policy
    optimizer: torch.optim.Optimizer
    steps: int
    step_size: float
    semantic: Semantic
    counterfactual: Literal["replay"] = "replay"

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters after the update, by name."""
        return {name: p.detach() for name, p in self.policy.module.named_parameters()}


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One round, frozen at the start of its update.

    model:    the pickled policy and its optimiser, together, so that the optimiser still holds the policy's parameters.
    records:  the full buffer, with raw advantages; rule: the update's hyper-parameters, schedules evaluated.
    weights:  (N,) what the round's selection gave the records; None where nothing was selected.
    numpy_state, torch_state: the global random states at the start of the update.
    threads, versions: of the process that took it; the same bits need the same build and thread count.

    A snapshot is a pickle: open only what you trust.
    """

    round: int
    model: bytes
    records: Records
    rule: UpdateRule
    weights: Tensor | None
    numpy_state: Any
    torch_state: Tensor
    threads: int
    versions: Mapping[str, str]

    @classmethod
    def take(
        cls,
        round: int,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        records: Records,
        rule: UpdateRule,
        weights: Tensor | None = None,
    ) -> Snapshot:
        """Freeze the round now. `policy.evaluate` must be a function that can be pickled (one defined in a module)."""
        buffer = io.BytesIO()
        torch.save((policy, optimizer), buffer, pickle_module=_pickler())
        everything = torch.arange(len(records), device=records.log_probs.device)
        return cls(
            round=round,
            model=buffer.getvalue(),
            records=records.take(everything),  # copies: a host may write the next round into the same buffer
            rule=rule,
            weights=None if weights is None else weights.clone(),
            numpy_state=np.random.get_state(),
            torch_state=torch.get_rng_state(),
            threads=torch.get_num_threads(),
            versions={"torch": torch.__version__, "numpy": np.__version__},
        )

    def save(self, file: BinaryIO | str | PathLike[str]) -> None:
        """Write the snapshot; `load` reads it back, in any process that can import the policy's classes."""
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        state["records"] = {field.name: getattr(self.records, field.name) for field in fields(Records)}
        state["rule"] = asdict(self.rule)
        torch.save({"format": _FORMAT, **state}, file)

    @classmethod
    def load(cls, file: BinaryIO | str | PathLike[str]) -> Snapshot:
        """Read a snapshot. Raises `RollsightError` where the file is no snapshot or is truncated."""
        try:
            state = torch.load(file, weights_only=False)
            if "language_format" in state:
                raise RollsightError(
                    f"{file} is the checkpoint of a language model's run, to resume from: it cannot be replayed."
                )
            if state.pop("format") != _FORMAT:
                raise RollsightError(
                    f"{file}: this snapshot was written by another version of Rollsight; use that version."
                )
            records = Records(**state.pop("records"))
            snapshot = cls(records=records, rule=UpdateRule(**state.pop("rule")), **state)
        except (OSError, RollsightError):
            raise
        except Exception as error:  # bytes that are no snapshot fail in whatever way the unpickler comes across them
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise RollsightError(f"{file}: not a readable snapshot ({reason}); take it again.") from error
        if snapshot.versions["torch"] != torch.__version__:
            warnings.warn(
                f"snapshot of round {snapshot.round} was taken with torch {snapshot.versions['torch']}, this is "
                f"{torch.__version__}: a replay may differ in its last bits",
                stacklevel=2,
            )
        return snapshot

    @property
    def policy(self) -> Policy:
        """The policy at the start of the update. One shared copy, for reading."""
        return self._start[0]

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser at the start of the update, over the parameters of `policy`."""
        return self._start[1]

    @cached_property
    def _start(self) -> tuple[Policy, torch.optim.Optimizer]:
        return self.rebuild()

    def rebuild(self) -> tuple[Policy, torch.optim.Optimizer]:
        """A fresh copy of the policy at the start of the update and of the optimiser over its parameters, to train."""
        try:
            model: tuple[Policy, torch.optim.Optimizer] = torch.load(io.BytesIO(self.model), weights_only=False)
        except (ImportError, AttributeError) as error:
            raise RollsightError(
                f"The policy of round {self.round} cannot be rebuilt here ({error}); import the module that defines "
                f"its classes first."
            ) from error
        return model

    def replay(self, semantic: Semantic = "repack", weights: Tensor | None = None, order: int | None = None) -> Replay:
        """Run the round's update again, on a copy of the policy.

        weights None replays what the host did, with the selection it had: the same bits on the same build and thread
        count. Otherwise (N,) weights, applied as "repack" (weight-0 records leave, minibatches are formed from the
        rest) or as "mask" (minibatches, advantages and denominators stay; the weight multiplies the record's loss).
        Advantages are never recomputed.

        order: None trains in the recorded minibatch order, a number (0 or more) in another, keyed by (order, round).
        """
        policy, optimizer = self.rebuild()
        sizes = [s.learning_rate * s.clip for s in self._steps(policy, optimizer, semantic, weights, order)]
        return Replay(policy, optimizer, len(sizes), sum(sizes), semantic)

    def trace(
        self,
        target: targets.Target | None = None,
        objective: objectives.Objective | None = None,
        weighting: Literal["update", "paper"] = "update",
        backend: Backend = "auto",
        precondition: bool = False,
    ) -> Scores:
        """Full TracIn over the round as it was trained (Hu et al. 2025, section 3): the sum, over the steps j that used
        record i, of w_j <grad l_i(theta_j), grad f(theta_j)>, with the advantages that step j used.

        weighting: "update", w_j = learning rate x clip factor / minibatch size, is what the update really did (to first
        order, for SGD); "paper", w_j = 1. The target is measured on the snapshot's records unless it has its own.
        precondition: divide its gradient by the optimiser's second moments as they stand after taking in step j's
        gradient (Adam, AdamW, RMSprop).
        """
        target = targets.Return() if target is None else target
        objective = self.rule.policy_term("raw") if objective is None else objective
        if weighting not in ("update", "paper"):
            raise RollsightError(f"weighting={weighting!r} is unknown; give 'update' or 'paper'.")
        policy, optimizer = self.rebuild()
        trained = policy.trainable()
        measured, used = _MeasuredOn(target, self.records), ""
        total = torch.zeros(len(self.records), dtype=self.records.log_probs.dtype)
        with closing(self._steps(policy, optimizer, "repack", None)) as steps:
            for step in steps:
                taken = {name: p.new_zeros(p.shape) if p.grad is None else p.grad for name, p in trained.items()}
                scores = score_records(
                    policy,
                    step.minibatch,
                    measured,
                    objective,
                    backend,
                    optimizer if precondition else None,
                    current=taken,
                )
                weight = step.learning_rate * step.clip / len(step.index) if weighting == "update" else 1.0
                total[step.index] += weight * scores.values.cpu()
                used = scores.backend
        return Scores(
            total,
            None,
            self.records.ids,
            self.records.valid_rows,
            target=target.name,
            normalisation="minibatch" if self.rule.normalize_advantage else "raw",
            backend=used,
            reason=f"TracIn over every step, {weighting} weights",
        )

    def minibatch_order(self, order: int | None = None) -> np.random.RandomState:
        """The stream that the update draws its minibatches from: the recorded one, or one keyed by (order, round)."""
        rng = np.random.RandomState()
        if order is None:
            rng.set_state(self.numpy_state)
        else:
            rng.seed(self._order_key(order))
        return rng

    def _order_key(self, order: int) -> list[int]:
        return [int(part) for part in np.random.SeedSequence((order, self.round, _ORDER)).generate_state(8)]

    def _steps(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        semantic: Semantic,
        weights: Tensor | None,
        order: int | None = None,
    ) -> Generator[Step]:
        if semantic not in ("repack", "mask"):
            raise RollsightError(f"semantic={semantic!r} is unknown; give 'repack' or 'mask'.")
        if weights is not None and weights.shape != (len(self.records),):
            raise RollsightError(
                f"weights has shape {tuple(weights.shape)} for {len(self.records)} records; give one weight per record."
            )
        weights = self.weights if weights is None else weights
        rng = self.minibatch_order(order)
        with _threads(self.threads), torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(self.torch_state)
            if order is not None:
                torch.manual_seed(self._order_key(order)[0])  # dropout's masks, where the policy has dropout
            yield from run_update(policy, optimizer, self.records, self.rule, rng, semantic, weights)


class _MeasuredOn:
    """A target bound to the round's buffer, while minibatches of it are scored."""

    def __init__(self, target: targets.Target, records: Records) -> None:
        self.name = target.name
        self.each = getattr(target, "each", False)
        if self.each:
            raise RollsightError("trace gives one score per record; use targets.Action(..., each=False).")
        self._measured = target.measured_on(records)
        self.terms, self.count = target.terms, target.count

    def measured_on(self, records: Records) -> Records:
        return self._measured


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pickler() -> Any:
    """cloudpickle where it is installed (hosts bring it): it also carries classes defined in the user's script."""
    try:
        import cloudpickle
    except ImportError:
        import pickle

        return pickle
    return cloudpickle
