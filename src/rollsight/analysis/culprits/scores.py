"""The influence of every record of every round with a snapshot on behaviours; each finished round is kept."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rollsight.analysis.culprits.behaviour import Behaviour, check_has_snapshots, joined
from rollsight.arrays import Floats
from rollsight.errors import RollsightError
from rollsight.runs import Run, results_folder, whole_file
from rollsight.scoring import score_records
from rollsight.snapshot import Snapshot
from rollsight.targets import Action

Report = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True, eq=False)
class RoundInfluence:
    """What a round taught of one behaviour, to first order.

    round: its number.
    log_prob: mean log pi(a given s) of the pairs before the round's update.
    values: (N,) influence of each record times its weight in the update, 0 where it was dropped or invalid; in nats per
        unit of the record's weight.
    weights: (N,) in the update: 0 for records that taught nothing.
    """

    round: int
    log_prob: float
    values: Floats
    weights: Floats


def score_rounds(run: Run, behaviours: Sequence[Behaviour], report: Report | None = None) -> list[list[RoundInfluence]]:
    """For each behaviour the influence of the records of every round with a snapshot, ascending.

    All behaviours are scored in one pass over a round. Finished rounds are kept next to the run, and are not scored
    again by another call.

    Raises:
        RollsightError: there are no snapshots, or one cannot be loaded.
    """
    check_has_snapshots(run)
    found: list[list[RoundInfluence]] = [[] for _ in behaviours]
    numbers = run.snapshot_rounds
    for done, number in enumerate(numbers):
        if report is not None:
            report(done, len(numbers))
        paths = [folder_of(run, one) / f"round-{number:06d}.npz" for one in behaviours]
        kept = [_read(path, number) for path in paths]
        missing = [index for index, one in enumerate(kept) if one is None]
        if missing:
            scored = _score(Snapshot.load(run.snapshot_path(number)), [behaviours[index] for index in missing])
            for index, taught in zip(missing, scored, strict=True):
                _write(paths[index], taught)
                kept[index] = taught
        for mine, whole in zip(found, kept, strict=True):
            assert whole is not None
            mine.append(whole)
    if report is not None:
        report(len(numbers), len(numbers))
    return found


def folder_of(run: Run, behaviour: Behaviour) -> Path:
    """Where the results on a behaviour are kept."""
    return results_folder(run.path, "culprits", behaviour.key)


def trained_weights(snapshot: Snapshot) -> torch.Tensor:
    """(N,) what each record weighed in the round's update."""
    valid = snapshot.records.valid_rows.to(torch.float32)
    return valid if snapshot.weights is None else valid * snapshot.weights.to(valid)


def _score(snapshot: Snapshot, behaviours: Sequence[Behaviour]) -> list[RoundInfluence]:
    records, policy = snapshot.records, snapshot.policy
    pairs = [len(one.places) for one in behaviours]
    groups = torch.repeat_interleave(torch.arange(len(behaviours)), torch.tensor(pairs))
    obs, actions = ([getattr(one, name) for one in behaviours] for name in ("obs", "actions"))
    target = Action(joined(obs), joined(actions), each=True, groups=groups)
    try:
        scores = score_records(policy, records, target, snapshot.rule.policy_term())
    except RollsightError as error:
        raise RollsightError(f"round {snapshot.round} cannot be scored: {error}") from error
    weights = trained_weights(snapshot).to(scores.values.device)
    values = (scores.values.detach() * weights[:, None]).cpu().numpy().astype(np.float32).astype(np.float64)
    mine = weights.cpu().numpy().astype(np.float64)
    return [
        RoundInfluence(snapshot.round, one.log_prob(policy, records), values[:, column], mine)
        for column, one in enumerate(behaviours)
    ]


def _write(path: Path, one: RoundInfluence) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, log_prob=one.log_prob, values=one.values.astype(np.float32), weights=one.weights)


def _read(path: Path, round: int) -> RoundInfluence | None:
    """What is kept of a round; None where there is nothing, or where it is damaged."""
    try:
        with np.load(path) as kept:
            values, weights = (np.asarray(kept[name], np.float64) for name in ("values", "weights"))
            return RoundInfluence(round, float(kept["log_prob"]), values, weights)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
