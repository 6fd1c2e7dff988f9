"""The scores that fidelity compares: ways of computing influence, and simple baselines, by their names in the table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import grad, vmap

from rollsight import objectives
from rollsight.analysis.fidelity.stacked import no_argument_checks
from rollsight.policy import Evaluation, Policy
from rollsight.records import Records
from rollsight.scoring import score_records
from rollsight.scoring.functional import with_parameters
from rollsight.scoring.gradients import gradient_of
from rollsight.scoring.modes import scoring_mode
from rollsight.snapshot import Snapshot
from rollsight.streams import Purpose, stream
from rollsight.targets import Target

DEFAULT = "single checkpoint"
EVERY_STEP = "every step"
SELF_OUT = "leave-self-out"
CROSS_FIT = "cross-fitted"
BASELINES = ("signed advantage", "gradient norm", "advantage x gradient norm", "random")
_FLOATS_AT_ONCE = 2**25  # of per-record gradients


def preconditions(snapshot: Snapshot) -> bool:
    """Whether the round's optimiser has second moments that scores can take into account."""
    return not isinstance(snapshot.optimizer, torch.optim.SGD)


def score_variants(snapshot: Snapshot, target: Target, seed: int) -> dict[str, Tensor]:
    """Name -> (N,) scores of the round's records for a target measured on them: every variant, then the baselines."""
    policy, records = snapshot.policy, snapshot.records
    objective = snapshot.rule.policy_term()
    other = "raw" if objective.advantage == "buffer" else "buffer"
    single = score_records(policy, records, target, objective).values
    squared = squared_gradient_norms(policy, records)
    scores = {DEFAULT: single, EVERY_STEP: snapshot.trace(target).values}
    if preconditions(snapshot):
        name = type(snapshot.optimizer).__name__
        adapted = score_records(policy, records, target, objective, optimizer=snapshot.optimizer).values
        scores |= {
            f"{DEFAULT} + {name}": adapted,
            f"{EVERY_STEP} + {name}": snapshot.trace(target, precondition=True).values,
        }
    scores |= {
        CROSS_FIT: score_records(policy, records, target, objective, cross_fit=True, seed=seed).values,
        SELF_OUT: single - self_slopes(policy, records, target, objective) * squared,
        f"{other} advantages": score_records(policy, records, target, replace(objective, advantage=other)).values,
    }
    advantage = objective.prepare(records).advantages
    length = squared.sqrt()
    rng = stream(seed, Purpose.RANDOM_SCORES)
    columns = (
        advantage,
        advantage.abs() * length,  # of the record's own loss: |grad l_i|
        advantage * length,
        torch.from_numpy(rng.standard_normal(len(records))),
    )
    return scores | dict(zip(BASELINES, columns, strict=True))


def self_slopes(policy: Policy, records: Records, target: Target, objective: objectives.Objective) -> Tensor:
    """(N,) each record's own contribution to its score per unit of |grad log pi_i|^2, for a target measured on the
    records: the slope of its loss times that of the target, in its log-probability."""
    prepared, measured = objective.prepare(records), target.measured_on(records)
    with scoring_mode(policy.module):
        evaluation = policy(records)
        loss = _slope(lambda e: objective.terms(e, prepared), evaluation)
        aim = _slope(lambda e: target.terms(e, measured) / max(target.count(measured), 1), evaluation)
    return loss * aim


def _slope(terms: Callable[[Evaluation], Tensor], evaluation: Evaluation) -> Tensor:
    log_prob, *others = (None if part is None else part.detach() for part in evaluation)
    assert log_prob is not None
    log_prob = log_prob.requires_grad_()
    return torch.autograd.grad(terms(Evaluation(log_prob, *others)).sum(), log_prob)[0]


def squared_gradient_norms(policy: Policy, records: Records) -> Tensor:
    """(N,) |grad log pi(a_i given s_i)|^2 over all trainable parameters, by per-record gradients."""
    parameters = {name: p.detach() for name, p in policy.trainable().items()}

    def log_prob(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return with_parameters(policy, parameters)(records.take(row[None])).log_prob[0]

    def squared(row: Tensor) -> Tensor:
        return torch.stack([(g**2).sum() for g in grad(log_prob)(parameters, row).values()]).sum()

    rows = torch.arange(len(records), device=records.log_probs.device)
    at_once = max(1, min(128, _FLOATS_AT_ONCE // sum(p.numel() for p in parameters.values())))
    with scoring_mode(policy.module):
        with suppress(RuntimeError, NotImplementedError), no_argument_checks():  # whatever vmap cannot run
            result: Tensor = vmap(squared, chunk_size=at_once)(rows)
            return result.detach()
        own = policy.trainable()
        one_by_one = (gradient_of(policy(records.take(row[None])).log_prob[0], own) for row in rows)
        return torch.stack([torch.stack([(g**2).sum() for g in one.values()]).sum() for one in one_by_one])
