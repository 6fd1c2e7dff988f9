"""`Scores`: one number per record, with the identities and the names of what was computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rollsight.errors import Diverged, RollsightError


@dataclass(frozen=True, eq=False)
class Scores:
    """Influence of each record on a target. Positive: the record pushed the target up (helped); negative: it hurt.

    values: (N,), or (N, M) for `targets.Action(..., each=True)`; in units of the target per unit of the record's
        weight.
    tokens: (N, T) where the backend gives them, else None; they add up to `values`.
    ids: identities, as in the records.
    valid: (N,) as in the records; invalid records score 0.
    target: name of the target.
    normalisation: how advantages were normalised.
    backend: how the scores were computed.
    reason: why with this backend: what the ones before it do not cover.
    """

    values: Tensor
    tokens: Tensor | None = None
    ids: Mapping[str, Tensor] = field(default_factory=dict)
    valid: Tensor = field(default=None)  # type: ignore[assignment]
    target: str = ""
    normalisation: str = ""
    backend: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", torch.as_tensor(self.values))
        valid = torch.ones(len(self.values), dtype=torch.bool) if self.valid is None else torch.as_tensor(self.valid)
        object.__setattr__(self, "valid", valid)
        if valid.shape != self.values.shape[:1]:
            raise RollsightError(
                f"Scores: `valid` has shape {tuple(valid.shape)} but there are {len(self.values)} scores; give one "
                f"per record."
            )

    def __len__(self) -> int:
        return len(self.values)

    def sum_by(self, unit: str) -> Tensor:
        """(U,) or (U, M): totals per unit (`"episode"`, `"env"`, ...) that has a valid record, in ascending order of
        `unit_column(unit)`."""
        units, position = self.unit_column(unit)[self.valid].unique(return_inverse=True)
        totals = self.values.new_zeros((len(units), *self.values.shape[1:]))
        return totals.index_add_(0, position, self.values[self.valid])

    def unit_column(self, unit: str) -> Tensor:
        """(N,) the unit of each record; `unit="record"` is its index."""
        if unit == "record":
            return torch.arange(len(self), device=self.values.device)
        if unit not in self.ids:
            known = ", ".join(["record", *self.ids])
            raise RollsightError(
                f"unit={unit!r} is not among the identities of these scores ({known}); give Records ids for it."
            )
        return self.ids[unit].to(self.values.device)

    def check_finite(self) -> None:
        """`Diverged` naming the records whose score is NaN or infinite."""
        finite = torch.isfinite(self.values)
        if bool(finite.all()):
            return
        bad = (~(finite if finite.dim() == 1 else finite.all(1))).nonzero().flatten().tolist()
        shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise Diverged(
            f"The scores of {len(bad)} record(s) are NaN or infinite (index {shown}); "
            "the policy or its inputs have diverged there: mark the rows invalid or lower the learning rate."
        )
