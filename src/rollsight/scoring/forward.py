"""A forward of the records whose graph waits for the scores: what a trainer computes of its policy before it has the
advantages (log-probabilities, values) need not be computed again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from rollsight.errors import RollsightError
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.scoring.layers import Call, Layers
from rollsight.scoring.modes import scoring_mode

Evaluated: TypeAlias = tuple[Evaluation, list[Call]]
Chunk: TypeAlias = tuple[slice, Callable[[], Evaluated]]


class Forward:
    """A policy's forward of a buffer, part by part, for one call of `score_records(forward=...)`, which uses it up.

    It holds the activations of all parts until then: the memory of a training forward over the whole buffer.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy, self._layers = policy, Layers(policy)
        self._parts: dict[int, Evaluated] = {}
        self._rows = [0]
        self._versions = self._now()

    def extend(self, records: Records) -> Evaluation:
        """Evaluate the next records of the buffer; what is returned has no graph. Of their `log_probs` and
        `advantages` only the shape counts.

        Raises:
            RollsightError: as `score_records` for the policy's modes and the evaluation's shapes.
        """
        with scoring_mode(self._policy.module):
            evaluation, calls = self._layers.forward(records)
        self._parts[len(self._rows) - 1] = evaluation, calls
        self._rows.append(self._rows[-1] + len(records))
        return Evaluation(*(None if column is None else column.detach() for column in evaluation))  # type: ignore[arg-type]

    def chunks(self, policy: Policy, records: int) -> list[Chunk]:
        """The parts' rows, and what gives each part once.

        Raises:
            RollsightError: it is of another policy, other parameters or another number of records, or used up.
        """
        if not self._parts:
            raise RollsightError("forward= was used already and its graph is gone; make a new Forward.")
        if policy.module is not self._policy.module or self._now() != self._versions:
            raise RollsightError("forward=: the policy is another one, or was trained since; make a new Forward.")
        if self._rows[-1] != records:
            raise RollsightError(
                f"forward=: it is of {self._rows[-1]} records and the buffer has {records}; extend it by the same, "
                "in their order."
            )
        between = zip(self._rows[:-1], self._rows[1:], strict=True)
        return [(slice(*rows), partial(self._parts.pop, i)) for i, rows in enumerate(between)]

    def _now(self) -> list[int]:
        return [parameter._version for parameter in self._layers.parameters.values()]
