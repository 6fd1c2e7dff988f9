"""The arms of the study: by what transitions are ordered, all drawn by the same weights of their rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from rollsight.streams import Purpose, stream
from rollsight.studies import arms
from rollsight.studies.arms import Kind

if TYPE_CHECKING:
    from torch import Tensor

    from rollsight.adapters.sb3_off_policy import ReplayInfluenceCallback
    from rollsight.scoring import Scores
    from rollsight.selection import Rule

Order: TypeAlias = "Callable[[ReplayInfluenceCallback, Scores, int], Tensor]"


def _influence(watch: ReplayInfluenceCallback, scores: Scores, seed: int) -> Tensor:
    return scores.values


def _td_error(watch: ReplayInfluenceCallback, scores: Scores, seed: int) -> Tensor:
    assert watch.replay is not None
    return watch.replay.records.advantages.abs()


def _learnability(watch: ReplayInfluenceCallback, scores: Scores, seed: int) -> Tensor:
    """TD loss of the network less that of its target network: ReLo (Sujit et al. 2023)."""
    from rollsight.studies.replay.learnability import relo

    return relo(watch)


def _random(watch: ReplayInfluenceCallback, scores: Scores, seed: int) -> Tensor:
    import torch

    rng = stream(seed, watch.round, Purpose.RANDOM_RANKING)
    return torch.from_numpy(rng.permutation(len(scores))).double()


# `make`: what orders the transitions, highest first; None draws as the host does.
KINDS: Mapping[str, Kind] = {
    "uniform": Kind("the host's own draws", None, takes_p=False),
    "per": Kind("by magnitude of the TD error, as prioritised replay does", _td_error, takes_p=False),
    "relo": Kind("by TD loss less that of the target network, as ReLo does", _learnability, takes_p=False),
    "influence": Kind("by influence on the calibration with held-out returns", _influence, takes_p=False),
    "random": Kind("in random order: the same weights", _random, takes_p=False),
}


@dataclass(frozen=True)
class ReplayArm(arms.Arm):
    """One arm of this study."""

    kinds: ClassVar[Mapping[str, Kind]] = KINDS

    def rule(self, watch: Callable[[], ReplayInfluenceCallback], power: float, seed: int) -> Rule | None:
        """What the callback weighs by; None for the host's own draws. watch: gives the callback."""
        from rollsight.selection import RankWeights, Selection

        order: Order | None = KINDS[self.kind].make
        if order is None:
            return None

        def rule(scores: Scores) -> Selection:
            values: Any = order(watch(), scores, seed)
            return RankWeights(power)(replace(scores, values=values))

        return rule
