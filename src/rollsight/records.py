"""`Records`: the columns of one rollout buffer, each row with an identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from rollsight.arrays import Array
from rollsight.errors import RollsightError

ID_NAMES = ("round", "env", "step", "episode", "group")

TensorLike: TypeAlias = Tensor | Array | list[Any]
Rows: TypeAlias = Tensor | Mapping[str, Tensor]


def rows_of(rows: Rows) -> int:
    """Number of leading rows of a tensor or of a dict of tensors."""
    first = rows if isinstance(rows, Tensor) else next(iter(rows.values()))
    return first.shape[0] if first.dim() else 0


def take_rows(rows: Rows, index: Tensor | slice) -> Rows:
    """The rows at `index`, of a tensor or of every entry of a dict."""
    if isinstance(rows, Tensor):
        return rows[index]
    return {name: column[index] for name, column in rows.items()}


@dataclass(frozen=True, eq=False)
class Records:
    """The columns of one rollout buffer: N records, or N sequences of T tokens.

    NumPy arrays and lists are converted. Raises `RollsightError` on empty or unequal columns and on values that are not
    finite in valid rows.

    obs: a tensor or a dict of tensors with leading N. Action masks, LSTM states and attention masks are entries of it.
    actions: a tensor or a dict of tensors with leading N.
    log_probs: (N,) or (N, T), of the behaviour policy.
    advantages: (N,) or (N, T), as the host computed them, *not* normalised: the objective does that.
    returns: (N,) or (N, T), optional: what the value function is trained towards.
    values: (N,) or (N, T), optional: the value function's estimates.
    rewards: (N,) or (N, T), optional.
    ids: name -> (N,) integers, any of `round`, `env`, `step`, `episode`, `group`. A number names one unit of the whole
        buffer: two environments must not share an episode number.
    valid: (N,) or (N, T) booleans. Invalid rows (autoreset rows, padding) score 0, weigh 0 and are never counted; what
        is not finite in their number columns is set to 0, because 0 * NaN is NaN.
    """

    obs: Rows
    actions: Rows
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor | None = field(default=None, kw_only=True)
    values: Tensor | None = field(default=None, kw_only=True)
    rewards: Tensor | None = field(default=None, kw_only=True)
    ids: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    valid: Tensor = field(default=None, kw_only=True)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for name in ("obs", "actions"):
            self._set(name, as_rows(getattr(self, name), name))
        for name in ("log_probs", "advantages", "returns", "values", "rewards"):
            column = getattr(self, name)
            if column is not None:
                column = as_tensor(column).detach()
                self._set(name, column if column.is_floating_point() else column.to(torch.get_default_dtype()))
        self._set("ids", {name: _as_integers(name, column) for name, column in (self.ids or {}).items()})
        shape = self.log_probs.shape
        valid = torch.ones(shape, dtype=torch.bool) if self.valid is None else as_tensor(self.valid)
        if valid.dtype != torch.bool:
            raise RollsightError(f"Records: `valid` has dtype {valid.dtype}; give booleans.")
        if len(shape) == 2 and valid.shape == shape[:1]:
            valid = valid[:, None].expand(shape).clone()
        self._set("valid", valid.to(self.log_probs.device))
        self._check()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check(self) -> None:
        n, shape = rows_of(self.obs), tuple(self.log_probs.shape)
        if n == 0:
            raise RollsightError("Records: the columns are empty (0 records); score a buffer with at least one record.")
        if len(shape) not in (1, 2):
            raise RollsightError(
                f"Records: `log_probs` has shape {shape}; give (N,), or (N, T) for sequences "
                "(sum the log-probabilities of a multi-dimensional action)."
            )
        columns: dict[str, int] = {"actions": rows_of(self.actions), "log_probs": shape[0]}
        columns |= {f"ids[{name!r}]": column.shape[0] for name, column in self.ids.items()}
        for name in ("advantages", "returns", "values", "rewards", "valid"):
            column = getattr(self, name)
            if column is None:
                continue
            columns[name] = column.shape[0] if column.dim() else 0
            if columns[name] == shape[0] and tuple(column.shape) not in (shape[:1], shape):
                raise RollsightError(
                    f"Records: `{name}` has shape {tuple(column.shape)} but `log_probs` has {shape}; give the same "
                    f"shape."
                )
        for name, length in columns.items():
            if length != n:
                raise RollsightError(
                    f"Records: `{name}` has {length} rows but `obs` has {n}; give columns of equal length."
                )
        for name in ("log_probs", "advantages", "returns", "values"):
            column = getattr(self, name)
            if column is not None and not bool(torch.isfinite(column).all()):
                self._check_finite(name, column)
                self._set(name, torch.where(torch.isfinite(column), column, 0.0))

    def _check_finite(self, name: str, column: Tensor) -> None:
        """`RollsightError` where a valid entry is not finite."""
        valid = self.valid if column.dim() == self.valid.dim() else self.valid.any(1)
        wrong = ~torch.isfinite(column) & valid
        bad = wrong.reshape(len(self), -1).any(1).nonzero().flatten()
        if len(bad):
            value = column[bad[0]][wrong[bad[0]]].reshape(-1)[0].item()
            raise RollsightError(
                f"Records: `{name}` is {value} in {len(bad)} valid record(s), first at index {int(bad[0])}; "
                "mark such rows invalid or fix the buffer."
            )

    def __len__(self) -> int:
        return int(self.log_probs.shape[0])

    @property
    def valid_rows(self) -> Tensor:
        """(N,) booleans: records with at least one valid token."""
        return self.valid if self.valid.dim() == 1 else self.valid.any(1)

    def take(self, index: Tensor | slice) -> Records:
        """The records at `index`, unchecked: a part of checked columns needs no second check."""
        part = object.__new__(Records)
        for column in fields(self):
            value = getattr(self, column.name)
            if column.name == "ids":
                value = {name: ids[index] for name, ids in value.items()}
            elif value is not None:
                value = take_rows(value, index)
            object.__setattr__(part, column.name, value)
        return part

    def with_advantages(self, advantages: Tensor) -> Records:
        """The same records with another advantage column of the same shape."""
        part = object.__new__(Records)
        part.__dict__.update(self.__dict__, advantages=advantages)
        return part

    def to(self, device: torch.device | str) -> Records:
        """The same records on another device."""

        def move(rows: Any) -> Any:
            return rows.to(device) if isinstance(rows, Tensor) else {k: v.to(device) for k, v in rows.items()}

        return replace(self, **{c.name: move(v) for c in fields(self) if (v := getattr(self, c.name)) is not None})


def as_tensor(column: Any) -> Tensor:
    """A tensor on the same memory where possible; NumPy views that run backwards (GAE is computed so) are copied."""
    backwards = isinstance(column, np.ndarray) and any(stride < 0 for stride in column.strides)
    return torch.as_tensor(column.copy() if backwards else column)


def as_rows(rows: Any, name: str) -> Rows:
    if isinstance(rows, Mapping):
        if not rows:
            raise RollsightError(f"Records: `{name}` is an empty dict; give at least one tensor with leading N.")
        columns = {key: as_tensor(column).detach() for key, column in rows.items()}
        lengths = {key: rows_of(column) for key, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise RollsightError(
                f"Records: `{name}` has entries of unequal length {lengths}; give equal leading dimensions."
            )
        return columns
    return as_tensor(rows).detach()


def _as_integers(name: str, column: TensorLike) -> Tensor:
    tensor = as_tensor(column)
    if name not in ID_NAMES:
        raise RollsightError(f"Records: unknown identity {name!r}; the identities are {', '.join(ID_NAMES)}.")
    if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.dim() != 1:
        raise RollsightError(
            f"Records: ids[{name!r}] has dtype {tensor.dtype} and shape {tuple(tensor.shape)}; give (N,) integers."
        )
    return tensor.long()
