"""`Policy`: a module and the one function of it that attribution needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rollsight.errors import RollsightError
from rollsight.records import Records


class Evaluation(NamedTuple):
    """What a policy, or a critic (`of_critics`), says of given actions in given observations.

    log_prob: (N,), or (N, T) for sequences; 0 of critics, which give no probabilities.
    entropy: the same shape; None where the policy has none.
    value: the same shape; None where the policy has no value function.
    q_values: (N, C), what each of C critics says of the action's value; None where the module is no critic.
    """

    log_prob: Tensor
    entropy: Tensor | None = None
    value: Tensor | None = None
    q_values: Tensor | None = None

    @classmethod
    def of_critics(cls, *q_values: Tensor) -> Evaluation:
        """The evaluation by a module that is one or several critics: (N,) or (N, 1) of each."""
        columns = torch.stack([column.flatten() for column in q_values], 1)
        return cls(columns.new_zeros(len(columns)), q_values=columns)

    @property
    def output(self) -> Tensor:
        """What the module computes of its parameters, with leading N: log-probabilities, or a critic's values."""
        return self.log_prob if self.q_values is None else self.q_values


@dataclass(frozen=True)
class Policy:
    """A module and how it evaluates records.

    module: the policy's network; its trainable parameters are what gradients are taken of.
    evaluate: `evaluate(module, obs, actions) -> Evaluation`, differentiable in the module's parameters. `obs` and
        `actions` reach it as they stand in the records: a tensor or a dict of tensors with leading N. It must treat the
        rows independently of one another (that is what makes a record's own gradient exist).
    """

    module: nn.Module
    evaluate: Callable[[nn.Module, Any, Any], Evaluation]

    def __call__(self, records: Records) -> Evaluation:
        """Evaluate the records' actions; `RollsightError` where something comes out in a wrong shape."""
        evaluation = self.evaluate(self.module, records.obs, records.actions)
        if not isinstance(evaluation, Evaluation):
            raise RollsightError(
                f"Policy: `evaluate` returned {type(evaluation).__name__}; return rollsight.Evaluation(log_prob, "
                f"entropy, value)."
            )
        expected, given = tuple(records.log_probs.shape), tuple(evaluation.log_prob.shape)
        if given != expected:
            raise RollsightError(
                f"Policy: `evaluate` gave log-probabilities of shape {given} for records of shape {expected}; "
                "sum over action dimensions and flatten."
            )
        for name, part in (("entropy", evaluation.entropy), ("value", evaluation.value)):
            if part is not None and tuple(part.shape) != expected:  # (N, 1) would broadcast to (N, N)
                raise RollsightError(
                    f"Policy: `evaluate` gave `{name}` of shape {tuple(part.shape)} for records of shape {expected}; "
                    "give one number per log-probability."
                )
        if evaluation.q_values is not None and evaluation.q_values.shape[:-1] != expected[:1]:
            raise RollsightError(
                f"Policy: `evaluate` gave `q_values` of shape {tuple(evaluation.q_values.shape)} for {expected[0]} "
                "records; give (N, C), a column for each critic."
            )
        return evaluation

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        if not parameters:
            raise RollsightError(
                "Policy: the module has no trainable parameter; set requires_grad on what training changes."
            )
        return parameters

    @property
    def device(self) -> torch.device:
        return next(iter(self.module.parameters())).device
