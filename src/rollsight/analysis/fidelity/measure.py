"""Fidelity of one round: do the scores predict what training on other weightings of the buffer ends in?

Every outcome comes from retraining the round's snapshot in the `mask` semantic: buffer, advantages, permutations and
denominators stay (the counterfactual is *replay*). See docs/definitions.md, Fidelity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from rollsight.analysis.fidelity import faults, perturbation, variants
from rollsight.analysis.fidelity.lds import HalfMasks, Lds, half_masks, lds
from rollsight.analysis.fidelity.outcomes import Retraining
from rollsight.analysis.fidelity.round import FidelityRound, FidelitySettings, TrustFigures
from rollsight.analysis.fidelity.trust import TrustRound
from rollsight.environments.trained import MakeEnv
from rollsight.snapshot import Snapshot


@dataclass(frozen=True)
class Fidelity:
    """What `measure_fidelity` found.

    env: name of the environment.
    round: the measured round.
    unit: what the masks keep or leave out.
    units: number of units.
    records: number of valid records.
    masks: number of random halves.
    seed: of every random stream.
    target: what the scores explain.
    normalisation: how advantages are normalised in the scores.
    optimizer: the optimiser of the replayed updates.
    reference: the score that the others are compared with.
    lds: outcome ("fresh", "train", "returns") -> the table of scores.
    steps: outcome ("fresh", "train") -> measured against predicted changes for small steps of the weights.
    removal: outcome ("fresh", "train") -> what leaving out the lowest, highest and random units does.
    faults: how well low scores find planted faults.
    trust: the round's trust line.
    trust_over_training: the trust lines of the run's rounds.
    notes: one sentence for each thing that could not be done, or was done another way.
    semantic: how records are left out: always by weights in the loss.
    counterfactual: always "replay": the buffer, its advantages and its returns stay as they were.
    """

    env: str
    round: int
    unit: str
    units: int
    records: int
    masks: int
    seed: int
    target: str
    normalisation: str
    optimizer: str
    reference: str
    lds: dict[str, Lds]
    steps: dict[str, list[perturbation.WeightStep]]
    removal: dict[str, list[perturbation.Removal]]
    faults: list[faults.Detection]
    trust: TrustFigures
    trust_over_training: list[TrustRound]
    notes: list[str] = field(default_factory=list)
    semantic: Literal["mask"] = "mask"
    counterfactual: Literal["replay"] = "replay"


Report = Callable[[str, int, int], None]  # what is being done, models done, models in all


def measure_fidelity(
    settings: FidelitySettings,
    on_progress: Report = lambda doing, done, total: None,
    *,
    make_env: MakeEnv | None = None,
) -> Fidelity:
    """Measure one round of a run.

    make_env: returns a new environment, in place of the one that is made again as the run describes it.

    Raises `RollsightError` for a round without a snapshot, an environment that cannot be made again, too few units.
    """
    round_ = FidelityRound(settings, make_env)
    snapshot, target, seed = round_.snapshot, round_.target, settings.seed
    masks = half_masks(snapshot.records, settings.unit, settings.masks, seed)
    done, total = 0, 2 * settings.masks + perturbation.MODELS

    def count(models: int) -> None:
        nonlocal done
        done += models
        on_progress("retraining", done, total)

    on_progress("fresh buffer", 0, total)
    measures = round_.measures()
    on_progress("scores", 0, total)
    scores = variants.score_variants(snapshot, target, seed)

    on_progress("retraining", 0, total)
    with round_.playing() as played:
        retraining = Retraining(snapshot, measures | played, settings.out, round_.described, count)
        outcomes = retraining(masks.weights)
        repeated = retraining(masks.weights, order=seed)
    tables = {name: lds(masks, scores, outcomes[name], repeated[name], variants.DEFAULT, seed) for name in outcomes}
    retraining = Retraining(snapshot, measures, settings.out, round_.described, count)
    steps, removal = _perturbed(retraining, masks, scores, snapshot, seed)
    on_progress("faults", total, total)
    found, notes = round_.faults()
    if retraining.reason:
        notes.insert(0, f"Models were retrained one after another: {retraining.reason}.")
    return Fidelity(
        env=round_.env,
        round=snapshot.round,
        unit=settings.unit,
        units=masks.units,
        records=len(snapshot.records),
        masks=settings.masks,
        seed=seed,
        target=target.name,
        normalisation=round_.objective.normalisation,
        optimizer=type(snapshot.optimizer).__name__,
        reference=variants.DEFAULT,
        lds=tables,
        steps=steps,
        removal=removal,
        faults=found,
        trust=round_.trust(scores),
        trust_over_training=round_.trust_over_training(),
        notes=notes,
    )


def _perturbed(
    retraining: Retraining, masks: HalfMasks, scores: dict[str, Tensor], snapshot: Snapshot, seed: int
) -> tuple[dict[str, list[perturbation.WeightStep]], dict[str, list[perturbation.Removal]]]:
    """The weight-step test and the removal curves of the reference score."""
    score = scores[variants.DEFAULT]
    directions = perturbation.step_directions(score, snapshot.records.valid_rows, seed)
    stepped = perturbation.step_weights(directions)
    removed = perturbation.removal_weights(masks, score, seed).to(stepped)
    everything = torch.ones(1, stepped.shape[1])
    outcomes = retraining(torch.cat([everything, stepped, removed]))
    effects = _effects(scores, snapshot)
    end = 1 + len(stepped)
    steps, removal = {}, {}
    for name, values in outcomes.items():
        steps[name] = perturbation.read_steps(directions, effects, values[1:end], values[0])
        removal[name] = perturbation.read_removal(values[end:], values[0])
    return steps, removal


def _effects(scores: dict[str, Tensor], snapshot: Snapshot) -> dict[str, Tensor]:
    """Scores as first-order changes of the target per unit of a record's weight; those of every step are so already.

    Adam's moves are not in proportion to its gradients' lengths, so only ranks mean something for scores without it.
    """
    rate = snapshot.replay("mask").step_size / len(snapshot.records)
    return {
        name: score * (1.0 if name.startswith(variants.EVERY_STEP) else rate)
        for name, score in scores.items()
        if name.startswith((variants.DEFAULT, variants.EVERY_STEP))
    }
