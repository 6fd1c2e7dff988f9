"""`Snapshot`: the frozen round. Everything its update depended on, so that it can be replayed and traced anywhere."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from rollsight import objectives, targets
from rollsight.errors import OptionError, RollsightError
from rollsight.policy import Policy
from rollsight.records import Records
from rollsight.scoring import Scores, score_records
from rollsight.scoring.score import Backend
from rollsight.snapshot import file as files
from rollsight.snapshot import signing
from rollsight.snapshot.model import Model, cannot_be_built
from rollsight.snapshot.plain import Encoder, decode
from rollsight.streams import Purpose, legacy, seed_from
from rollsight.update import DropMode, Step, UpdateRule, run_update

_FORMAT = 2
_PICKLES = 1  # the format of earlier versions, which is a pickle as a whole


@dataclass(frozen=True, eq=False)
class Replay:
    """What a replayed round ended in.

    policy: trained, a copy of the snapshot's.
    optimizer: its optimiser after the last step.
    steps: optimiser steps taken.
    step_size: the sum of learning rate x clip factor over the steps.
    semantic: how records were left out, "repack" or "mask".
    counterfactual: always "replay": the buffer, its advantages and its returns stayed as they were.
    """

    policy: Policy
    optimizer: torch.optim.Optimizer
    steps: int
    step_size: float
    semantic: DropMode
    counterfactual: Literal["replay"] = "replay"

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters after the update, by name."""
        return {name: p.detach() for name, p in self.policy.module.named_parameters()}


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One round, frozen at the start of its update.

    round: its number.
    model: the policy and its optimiser, together, so that the optimiser still holds the policy's parameters.
    records: the full buffer, with raw advantages.
    rule: the update's hyper-parameters, schedules evaluated.
    weights: (N,) what the round's selection gave the records; None where nothing was selected.
    numpy_state: NumPy's global random state at the start of the update.
    torch_state: PyTorch's, likewise.
    threads: PyTorch threads of the process that took it; the same bits need the same number.
    versions: of the packages in that process; the same bits need the same build.
    """

    round: int
    model: Model
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
        """Freeze the round now.

        Where the policy is not one of a known package, `policy.evaluate` must be a function that can be pickled (one
        defined in a module).
        """
        everything = torch.arange(len(records), device=records.log_probs.device)
        return cls(
            round=round,
            model=Model.freeze(policy, optimizer),
            records=records.take(everything),  # copies: a host may write the next round into the same buffer
            rule=rule,
            weights=None if weights is None else weights.clone(),
            numpy_state=np.random.get_state(),
            torch_state=torch.get_rng_state(),
            threads=torch.get_num_threads(),
            versions={"torch": str(torch.__version__), "numpy": np.__version__},
        )

    def save(self, file: BinaryIO | str | PathLike[str]) -> None:
        """Write the snapshot; `load` reads it back, in any process that can import the policy's classes.

        Where the policy can only be pickled, the file is signed with this user's key; a warning where there is none.
        """
        encode = Encoder()
        state: dict[str, Any] = {"format": _FORMAT}
        for field in fields(self):
            if field.name not in ("model", "records", "rule"):
                state[field.name] = encode(getattr(self, field.name), field.name)
        state["rule"] = encode(asdict(self.rule), "rule")
        columns = {column.name: getattr(self.records, column.name) for column in fields(Records)}
        columns |= {name: dict(rows) for name, rows in columns.items() if isinstance(rows, Mapping)}
        state["records"] = encode(columns, "records")
        state["model"] = self.model.described
        tensors = {**encode.tensors, **{f"model.{name}": tensor for name, tensor in self.model.tensors.items()}}
        if self.model.pickled is not None:
            tensors["model.pickle"] = torch.frombuffer(bytearray(self.model.pickled), dtype=torch.uint8)
        sign = _sign if self.model.pickled is not None else _no_signature
        if isinstance(file, (str, PathLike)):
            with open(file, "wb") as opened:
                files.write(opened, state, tensors, sign)
        else:
            files.write(file, state, tensors, sign)

    @classmethod
    def load(cls, file: BinaryIO | str | PathLike[str], *, trust: bool = False) -> Snapshot:
        """Read a snapshot.

        trust: load a pickle too that was not signed by this user's key, which executes the code in it; snapshots in a
        folder given to `trust_folder` need it not.

        Raises `RollsightError` where the file is not a snapshot, is damaged, or holds a pickle that is not trusted.
        """
        named = isinstance(file, (str, PathLike))
        data = Path(file).read_bytes() if isinstance(file, (str, PathLike)) else file.read()
        trust = trust or (named and signing.in_trusted_folder(str(file)))
        try:
            if files.is_one(data):
                snapshot = cls._read(files.read(data), str(file), trust)
            else:
                snapshot = cls._read_pickle(data, str(file), trust)
        except (OSError, RollsightError, ModuleNotFoundError):
            raise
        except Exception as error:  # bytes that are not a snapshot fail in whatever way the reader comes across them
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise RollsightError(f"{file}: not a readable snapshot ({reason}); take it again.") from error
        if snapshot.versions["torch"] != torch.__version__:
            warnings.warn(
                f"snapshot of round {snapshot.round} was taken with torch {snapshot.versions['torch']}, this is "
                f"{torch.__version__}: a replay may differ in its last bits",
                stacklevel=2,
            )
        return snapshot

    @classmethod
    def _read(cls, content: files.Content, file: str, trust: bool) -> Snapshot:
        state = dict(content.state)
        if state.pop("format") != _FORMAT:
            raise _of_another_version(file)
        described = state.pop("model")
        pickled = content.tensors.get("model.pickle")
        if pickled is None and content.signature:
            raise ValueError("its signature is damaged: it needs none")
        if pickled is not None and not trust:
            if not content.signature:
                raise _not_trusted(file, "it has no signature")
            if not signing.is_signed(content.digest, content.signature):
                raise _not_trusted(file, "another key than yours signed it")
        tensors = {k.removeprefix("model."): v for k, v in content.tensors.items() if k.startswith("model.")}
        state = decode(state, content.tensors)
        return cls(
            model=Model(described, tensors, None if pickled is None else pickled.numpy().tobytes()),
            records=Records(**state.pop("records")),
            rule=UpdateRule(**state.pop("rule")),
            **state,
        )

    @classmethod
    def _read_pickle(cls, data: bytes, file: str, trust: bool) -> Snapshot:
        """A file of an earlier version, or one that is not a snapshot."""
        unsigned = _not_trusted(file, "earlier versions wrote pickles without a signature")
        state: Any
        try:
            state = torch.load(io.BytesIO(data), weights_only=not trust)
        except pickle.UnpicklingError as error:  # more than tensors and plain values
            if trust or not data.startswith(b"PK"):
                raise
            raise unsigned from error
        if "language_format" in state:
            raise RollsightError(
                f"{file} is the checkpoint of a language model's run, to resume from: it cannot be replayed."
            )
        if state.pop("format") != _PICKLES:
            raise _of_another_version(file)
        if not trust:  # the model in it is a pickle even where the rest is not
            raise unsigned
        model = Model(None, {}, state.pop("model"))
        return cls(model=model, records=Records(**state.pop("records")), rule=UpdateRule(**state.pop("rule")), **state)

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
            return self.model.build()
        except Exception as error:
            raise cannot_be_built(self.round, error) from error

    def replay(self, semantic: DropMode = "repack", weights: Tensor | None = None, order: int | None = None) -> Replay:
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
        target = targets.Return() if target is None else targets.checked(target)
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
                    training_gradient=taken,
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
        if order is not None:
            return legacy(order, self.round, Purpose.MINIBATCH_ORDER)
        rng = np.random.RandomState()
        rng.set_state(self.numpy_state)
        return rng

    def _steps(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        semantic: DropMode,
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
                key = order, self.round, Purpose.MINIBATCH_ORDER
                torch.manual_seed(seed_from(*key))  # dropout's masks, where the policy has dropout
            yield from run_update(policy, optimizer, self.records, self.rule, rng, semantic, weights)


class _MeasuredOn:
    """A target bound to the round's buffer, while minibatches of it are scored."""

    def __init__(self, target: targets.Target, records: Records) -> None:
        self.name, self.each, self.records = target.name, target.each, target.records
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


def _sign(digest: str) -> str | None:
    try:
        return signing.sign(digest)
    except RollsightError as error:
        warnings.warn(f"the snapshot is not signed, so that reading it will need trust: {error}", stacklevel=4)
        return None


def _no_signature(digest: str) -> None:
    """Data alone needs none."""


def _not_trusted(file: str, why: str) -> RollsightError:
    return OptionError(
        f"{file} holds a pickle, which can execute any code when it is loaded, and nothing shows that you wrote it "
        f"({why}): if you trust whoever did, load it with {{trust}}",
        trust=True,
    )


def _of_another_version(file: str) -> RollsightError:
    return RollsightError(f"{file}: this snapshot was written by another version of Rollsight; use that version.")
