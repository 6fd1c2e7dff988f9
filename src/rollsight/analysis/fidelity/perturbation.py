"""Small and large changes of the record weights: does the outcome move as the scores say?

Each test is two functions: one gives the weights to train with, the other reads the outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rollsight.analysis.fidelity.lds import HalfMasks
from rollsight.arrays import Floats
from rollsight.scoring.ranks import spearman
from rollsight.streams import Purpose, stream

ETAS = (0.05, 0.2, 0.5)
FRACTIONS = (0.05, 0.1, 0.2, 0.4)
_DIRECTIONS = 16
_REPEATS = 8
MODELS = len(ETAS) * (1 + _DIRECTIONS) + len(FRACTIONS) * (2 + _REPEATS) + 1  # both tests and the baseline


@dataclass(frozen=True)
class WeightStep:
    """Measured against predicted changes of the target for weights 1 + eta * direction.

    prediction: which score predicts.
    eta: size of the change of the weights.
    slope: of the measured change on the predicted one, through the origin, over random directions; 1 is exact.
    rank: Spearman over the same directions.
    along_score: measured / predicted along the scores themselves.
    """

    prediction: str
    eta: float
    slope: float
    rank: float
    along_score: float


def step_directions(scores: Tensor, valid: Tensor, seed: int) -> Tensor:
    """(1 + R, N): the scores (N,) over their standard deviation, then random normal directions; 0 where invalid."""
    rng = stream(seed, Purpose.WEIGHT_STEPS)
    random = torch.from_numpy(rng.standard_normal((_DIRECTIONS, len(scores)))).to(scores)
    spread = scores[valid].std()
    return torch.cat([(scores / spread if spread > 0 else scores)[None], random]) * valid


def step_weights(directions: Tensor) -> Tensor:
    """(len(ETAS) * (1 + R), N) weights 1 + eta * direction, eta by eta."""
    return torch.cat([1 + eta * directions for eta in ETAS])


def read_steps(
    directions: Tensor, effects: Mapping[str, Tensor], outcomes: Floats, baseline: float
) -> list[WeightStep]:
    """Compare the outcomes of `step_weights` with first-order predictions.

    effects: name -> (N,) predicted change of the target per unit of each record's weight. baseline: the outcome with
    all weights 1.
    """
    rows = []
    changes = torch.from_numpy(outcomes - baseline).view(len(ETAS), -1)
    for name, effect in effects.items():
        for eta, change in zip(ETAS, changes, strict=True):
            predicted = eta * (directions.double() @ effect.double().to(directions.device)).cpu()
            mine, random = predicted[1:], change[1:]
            scale = float(mine @ mine)
            slope = float(mine @ random) / scale if scale else float("nan")
            along = float(change[0] / predicted[0]) if predicted[0] != 0 else float("nan")
            rows.append(WeightStep(name, eta, slope, spearman(mine, random), along))
    return rows


@dataclass(frozen=True)
class Removal:
    """Outcomes minus that of training on everything, after leaving out a fraction of the units.

    fraction: the fraction left out.
    lowest: outcome without the units of the lowest scores.
    highest: outcome without the units of the highest scores.
    random: mean outcome without random units.
    random_low, random_high: extremes over the random draws.
    """

    fraction: float
    lowest: float
    highest: float
    random: float
    random_low: float
    random_high: float


def removal_weights(masks: HalfMasks, scores: Tensor, seed: int) -> Tensor:
    """(len(FRACTIONS) * (2 + repeats), N): for each fraction without the lowest, the highest, and random units."""
    rng = stream(seed, Purpose.REMOVAL)
    ascending = masks.totals(scores).argsort(kind="stable")
    orders = [ascending, ascending[::-1], *(rng.permutation(masks.units) for _ in range(_REPEATS))]
    rows = []
    for fraction in FRACTIONS:
        for order in orders:
            keep = np.ones(masks.units + 1, dtype=bool)
            keep[order[: int(fraction * masks.units)]] = False
            keep[-1] = False  # position -1: invalid records
            rows.append(torch.from_numpy(keep[masks.position.numpy()]))
    return torch.stack(rows).float()


def read_removal(outcomes: Floats, baseline: float) -> list[Removal]:
    """The removal curves, from the outcomes of `removal_weights`."""
    rows = []
    for fraction, change in zip(FRACTIONS, (outcomes - baseline).reshape(len(FRACTIONS), -1), strict=True):
        random = change[2:]
        rows.append(Removal(fraction, *(float(x) for x in (*change[:2], random.mean(), random.min(), random.max()))))
    return rows
