"""What a selection can go by: the score of the paper, its variants and controls, and the baselines without gradients.

Each takes a round to one number for each record, which `rollsight.selection` drops from below, negative ones only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from rollsight import targets
from rollsight.arrays import Array
from rollsight.errors import RollsightError
from rollsight.scoring import Scores
from rollsight.scoring.halves import split_halves
from rollsight.streams import Purpose, seed_from, stream
from rollsight.tabular import observed_returns, tabular_advantages
from rollsight.training.compiled import influence
from rollsight.training.compiled.batch import Batch
from rollsight.training.compiled.networks import Parameters
from rollsight.training.compiled.round import Round

Ranking: TypeAlias = Callable[[Round], Scores]


def f_return(round: Round) -> Scores:
    """Influence on the return (Hu et al. 2025, section 3)."""
    return _scores(round, influence.scores(round.network, *_of(round, round.batch)))


def permuted(round: Round) -> Scores:
    """The same with advantages permuted over the records: what the score gives when it knows nothing.

    A control: see docs/definitions.md, Metrics of learning curves.
    """
    rng = stream(round.seed, round.number, Purpose.PERMUTED_ADVANTAGES)
    rows, advantages = np.flatnonzero(round.batch.valid), round.batch.advantages.copy()
    advantages[rows] = advantages[rng.permutation(rows)]
    return _scores(round, influence.scores(round.network, *_of(round, round.batch._replace(advantages=advantages))))


def cross_fitted(round: Round) -> Scores:
    """Each record against the gradient of the half that does not hold its episode."""
    first, one, other = against_halves(round)
    return _scores(round, np.where(first, other, one))


def against_halves(round: Round) -> tuple[Array, Array, Array]:
    """Which records are in the first half, and all records' scores against each half's gradient, (N,) each."""
    seed = seed_from(round.seed, round.number, Purpose.CROSS_FIT_HALVES)
    first = split_halves(round.records, seed).numpy()
    one, other = np.asarray(influence.against_halves(round.network, *_of(round, round.batch), first))
    return first, one, other


def preconditioned(round: Round) -> Scores:
    """Along the direction in which Adam would go (docs/definitions.md, Preconditioned scores)."""
    normalize, parameters, batch, clip_range = _of(round, round.batch)
    values = influence.preconditioned(
        round.network, round.optimizer, normalize, parameters, round.state, batch, clip_range
    )
    return _scores(round, values)


def objective(round: Round) -> Scores:
    """Against the mean gradient of the records' own losses: summed over episodes this is DTV."""
    return _scores(round, influence.scores(round.network, *_of(round, _normalized(round))))


def objective_without_own_episode(round: Round) -> Scores:
    """The same less what the record's own episode contributed: summed over episodes this is DTV-Loo, lambda = 1."""
    _, episode = np.unique(round.records.ids["episode"].numpy(), return_inverse=True)
    return _scores(round, influence.without_own_episode(round.network, *_of(round, _normalized(round)), episode))


def sign_mismatch(round: Round) -> Scores:
    """Baseline: |A_bar - A_hat|, negative where the signs differ, so that the largest mismatches go first."""
    a_bar, a_hat = tabular_values(round), round.records.advantages
    differ = torch.sign(a_bar) * torch.sign(a_hat) < 0
    distance = (a_bar - a_hat).abs()
    return _scores(round, torch.where(differ, -distance, distance), backend="tabular")


def agreement(round: Round) -> Scores:
    """Baseline: A_bar * A_hat, so that the most opposed go first."""
    return _scores(round, tabular_values(round) * round.records.advantages, backend="tabular")


def temporal_difference_errors(round: Round) -> Tensor:
    """(N,) r + gamma V(s') - V(s), which the advantages are discounted sums of."""
    records = round.records
    advantages, episode, env = (c.numpy() for c in (records.advantages, records.ids["episode"], records.ids["env"]))
    goes_on = np.append((episode[1:] == episode[:-1]) & (env[1:] == env[:-1]), False)
    following = np.where(goes_on, np.roll(advantages, -1), 0.0)
    return torch.from_numpy(advantages - round.gamma * round.gae_lambda * following)


def tabular_values(round: Round) -> Tensor:
    """(N,) the paper's estimate of the true advantages from repeats inside the buffer, 0 where it has none."""
    records = round.records
    if not isinstance(records.obs, Tensor) or not isinstance(records.actions, Tensor):
        raise RollsightError("The advantage heuristics need plain observations, not dictionaries; choose other arms.")
    episode, env, step = (records.ids[name].numpy() for name in ("episode", "env", "step"))
    # Whether the last episode of each environment ended with the buffer is not in the records: it counts as open.
    open_episodes = {int(episode[np.flatnonzero(env == one)[-1]]) for one in np.unique(env).tolist()}
    complete = np.array([number not in open_episodes for number in episode.tolist()])
    assert records.rewards is not None
    returns = observed_returns(records.rewards.numpy(), episode, step, complete, round.gamma)
    states, actions = ([row.tobytes() for row in rows.numpy()] for rows in (records.obs, records.actions))
    return torch.from_numpy(np.nan_to_num(tabular_advantages(states, actions, returns))).float()


def _of(round: Round, batch: Batch) -> tuple[bool, Parameters, Batch, float]:
    """What all compiled scores take after the network."""
    term = round.rule.policy_term()
    return term.normalisation != "raw", round.parameters, batch, round.rule.clip_range


def _normalized(round: Round) -> Batch:
    prepared = round.rule.policy_term().prepare(round.records)
    return round.batch._replace(advantages=prepared.advantages.numpy())


def _scores(round: Round, values: object, backend: str = "jax") -> Scores:
    return Scores(
        torch.from_numpy(np.array(values)),
        None,
        round.records.ids,
        round.records.valid,
        target=targets.Return().name,
        normalisation=round.rule.policy_term().normalisation,
        backend=backend,
        reason="the compiled engine's forward-mode derivative" if backend == "jax" else "no gradient is involved",
    )
