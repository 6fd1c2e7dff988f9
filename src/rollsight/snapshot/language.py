"""A language model's round, frozen at the start of its update: what is trained of the model, without its base.

The file holds tensors and plain values only (`torch.load(..., weights_only=True)`): loading it executes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, BinaryIO

import torch
from torch import Tensor

from rollsight.errors import RollsightError
from rollsight.records import Records

SMALL = 16 * 2**20  # bytes of a round that are kept without being asked for
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class LanguageRound:
    """One round of a language model, frozen at the start of its update.

    round: its number.
    trainable: the parameters that training changes, by name.
    optimizer: the optimiser's state, its parameters numbered in the order of `trainable`.
    records: the completions, as the update takes them.
    weights: (N,) 0 where the round's selection left a completion out, else 1.
    update: what else the update depends on, plain values.
    """

    round: int
    trainable: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    records: Records
    weights: Tensor
    update: Mapping[str, Any]

    def save(self, file: BinaryIO) -> None:
        """Write it; `load` reads it back."""
        state = {one.name: getattr(self, one.name) for one in fields(self)}
        state["records"] = {one.name: _plain(getattr(self.records, one.name)) for one in fields(Records)}
        # Of its own: a part of a larger tensor would be saved with all of that.
        state["trainable"] = {name: tensor.detach().clone() for name, tensor in self.trainable.items()}
        torch.save({"language_round": _FORMAT, **state}, file)

    @classmethod
    def load(cls, file: str | PathLike[str]) -> LanguageRound:
        """Read one, into the CPU's memory.

        Raises:
            RollsightError: the file is none, or is damaged.
        """
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            if state.pop("language_round") != _FORMAT:
                raise ValueError("another version of Rollsight wrote it")
            return cls(**{**state, "records": Records(**state["records"])})
        except OSError:
            raise
        except Exception as error:  # bytes that are not one fail in whatever way the unpickler comes across them
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise RollsightError(f"{file} is not a readable round of a language model ({reason})") from error

    def put_into(self, trainable: Mapping[str, Tensor]) -> None:
        """Set parameters to those of the round.

        Raises:
            RollsightError: they are of another model or adapter.
        """
        mine = {name: tuple(tensor.shape) for name, tensor in self.trainable.items()}
        theirs = {name: tuple(tensor.shape) for name, tensor in trainable.items()}
        if mine != theirs:
            other = next(name for name in [*mine, *theirs] if mine.get(name) != theirs.get(name))
            raise RollsightError(
                f"round {self.round} was trained with another model or adapter ({other}: {mine.get(other)} there, "
                f"{theirs.get(other)} here): give the model that the run was trained from"
            )
        with torch.no_grad():
            for name, tensor in trainable.items():
                tensor.copy_(self.trainable[name])

    def put_into_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the state of an optimiser, over the round's parameters in their order, to that of the round."""
        optimizer.load_state_dict(deepcopy(dict(self.optimizer)))  # which takes the tensors as they are, and steps them


def bytes_of(parameters: Iterable[Tensor]) -> int:
    """What a round's parameters take with Adam's two moments, in bytes."""
    return 3 * sum(one.numel() * one.element_size() for one in parameters)


def _plain(column: Any) -> Any:
    return dict(column) if isinstance(column, Mapping) else column
