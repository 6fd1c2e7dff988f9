"""Recorded against evaluated log-probabilities, on the policy that collected the records."""

from __future__ import annotations

import warnings
from weakref import WeakSet

import torch
from torch import Tensor, nn

from rollsight.objectives import Objective
from rollsight.policy import Evaluation
from rollsight.records import Records

# In nats, a record's mean over its tokens. SmolLM2-135M, 8 completions of 24 tokens at most: float32 below 1e-4;
# bfloat16 sampling 0.01 to 0.15 from a bfloat16 forward, 0.04 to 0.09 from a float32 one; a temperature of 0.7 left out
# 0.23 to 0.52 (of 0.9: 0.09 to 0.17, which rounding hides); padding that is attended to 0.5 to 4; 8-bit weights 0.6 to
# 1.4; dropout of 0.05 while sampling 0.4 to 7.
FAR, SHARE = 0.2, 0.1

_warned: WeakSet[nn.Module] = WeakSet()


class Compared:
    """An objective that also notes how far the evaluated log-probabilities are from the recorded ones."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.normalisation = objective, objective.normalisation
        self._gaps: list[Tensor] = []

    def prepare(self, records: Records) -> Records:
        return self.objective.prepare(records)

    def terms(self, evaluation: Evaluation, records: Records) -> Tensor:
        with torch.no_grad():
            gap = torch.where(records.valid, evaluation.log_prob.detach() - records.log_probs, 0.0).abs()
            if gap.dim() == 2:
                gap = gap.sum(1) / records.valid.sum(1).clamp(min=1)
            self._gaps.append(gap)
        return self.objective.terms(evaluation, records)

    def warn(self, module: nn.Module) -> None:
        """Warn, once for a module, where more than `SHARE` of the records are `FAR` off."""
        gaps = torch.cat(self._gaps) if self._gaps else torch.zeros(1)
        share = float((gaps > FAR).float().mean())
        if share <= SHARE or module in _warned:
            return
        _warned.add(module)
        warnings.warn(
            f"the policy's log-probabilities are not the recorded ones: {share:.0%} of the records are more than {FAR} "
            f"nats off (a token, on average), the median {float(gaps.median()):.2g}, the largest "
            f"{float(gaps.max()):.2g}, so ratios and scores are of another distribution than the samples; look for a "
            "temperature or another sampling option that `evaluate` leaves out, dropout while sampling, a model that "
            "does not mask its padding, or records of another policy",
            stacklevel=3,
        )
