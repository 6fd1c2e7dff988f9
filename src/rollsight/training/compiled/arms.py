"""Ways to turn a round's records into an update: PPO, PPO on a selection, and the controls of a study.

Controls: see docs/definitions.md, Metrics of learning curves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

from rollsight.scoring import Scores
from rollsight.selection import Rule, Selection
from rollsight.training.compiled import rankings
from rollsight.training.compiled.batch import draw_minibatches, draw_prioritised
from rollsight.training.compiled.networks import Network, Parameters
from rollsight.training.compiled.ppo import Trained, evaluation
from rollsight.training.compiled.rankings import Ranking
from rollsight.training.compiled.round import Round


@dataclass(frozen=True, eq=False)
class Update:
    """What a round's update did. Times are by the round's clock.

    trained: parameters and optimiser state after it.
    steps: optimiser steps taken.
    scores: None where there were none.
    selection: None where there was none.
    time_score: seconds until the records were chosen.
    time_train: seconds of the rest.
    semantic: how dropped records left the update: "repack", or "mask" with the loss that they left.
    """

    trained: Trained
    steps: int
    scores: Scores | None
    selection: Selection | None
    time_score: float
    time_train: float
    semantic: str = "repack"


# The search for an update's factor ends at the largest it may have, and at 1e-5 of what it began with.
_FARTHEST, _HALVINGS = 2.0**10, 16

_MASKED = {"in_policy": "of the policy's loss", "in_value": "of the value loss"}

Arm: TypeAlias = Callable[[Round], Update]


@dataclass(frozen=True)
class Filtered:
    """PPO on the records that a rule keeps. The defaults score every record and keep all.

    rule: what is dropped; None drops nothing.
    every: score every k-th round only; 0 never does: plain PPO.
    ranking: how records are scored.
    as_many_steps: go on with further epochs over what is kept, up to the number of steps that a full buffer takes.
    pause: keep all where every episode that ended in the round has the same return: nothing says then which records
        helped, the scores are noise of the value function, and dropping by them makes that noise longer.
    only: the one loss that dropped records leave: with "in_policy" the value function learns from all, with "in_value"
        the policy does. Minibatches stay those of the full buffer. None drops them from the buffer.
    """

    rule: Rule | None = None
    every: int = 1
    ranking: Ranking = rankings.f_return
    as_many_steps: bool = False
    pause: bool = False
    only: Literal["in_policy", "in_value"] | None = None

    def __call__(self, round: Round) -> Update:
        started = round.clock()
        scores, selection = None, None
        if self.every and round.number % self.every == 0:
            scores = round.watch.attempt("scores", lambda: self.ranking(round))
            paused = self.pause and len(round.returns) > 0 and np.ptp(round.returns) == 0
            selection = None if paused else self._selected(round, scores)
        chosen = round.clock()
        kept = round.kept(None if self.only else selection)
        part = {} if self.only is None or selection is None else {self.only: selection.weights.numpy() > 0}
        minibatches = draw_minibatches(round.order(), len(round.records), round.rule, kept, fill=self.as_many_steps)
        trained = round.train(minibatches, **part)
        semantic = "mask, " + _MASKED[self.only] if self.only else "repack"
        times = chosen - started, round.clock() - chosen
        return Update(trained, minibatches.steps, scores, selection, *times, semantic)

    def _selected(self, round: Round, scores: Scores | None) -> Selection | None:
        """What the rule chooses; None, which keeps every record, without a rule and where it fails."""
        if (rule := self.rule) is None or scores is None:
            return None
        scores.check_finite()  # else the policy has diverged, which is not a failure of the rule
        return round.watch.attempt("selection, so every record is kept", lambda: rule(scores))


@dataclass(frozen=True)
class Rescored:
    """A rule that chooses anew before every epoch, from the whole buffer at the parameters reached by then.

    The scores and the selection that it reports are the first epoch's.

    rule: what is dropped in each epoch.
    ranking: how records are scored.
    """

    rule: Rule
    ranking: Ranking = rankings.f_return

    def __call__(self, round: Round) -> Update:
        order, now = round.order(), replace(round, rule=replace(round.rule, n_epochs=1))
        steps, time_score, time_train, first = 0, 0.0, 0.0, None
        for _ in range(round.rule.n_epochs):
            started = round.clock()
            scores = self.ranking(now)
            selection = self.rule(scores)
            chosen = round.clock()
            minibatches = draw_minibatches(order, len(round.records), now.rule, round.kept(selection))
            trained = now.train(minibatches)
            now = now.after(trained)
            steps += minibatches.steps
            time_score += chosen - started
            time_train += round.clock() - chosen
            first = first or (scores, selection)
        assert first is not None
        return Update(trained, steps, *first, time_score, time_train)


@dataclass(frozen=True)
class MatchedNorm:
    """Plain PPO whose update of the policy is as long as the one that another arm would make from here.

    The policy's parameters move by PPO's own difference, rescaled; parameters of the value function alone stay PPO's,
    and so does `approx_kl`.

    other: the arm whose length is matched.
    """

    other: Arm

    def __call__(self, round: Round) -> Update:
        like = self.other(round)
        mine = Filtered(every=0)(round)
        names = policy_parameters(round.network, round.parameters)
        wanted, length = (_distance(round.parameters, t.parameters, names) for t in (like.trained, mine.trained))
        moved = _rescaled(round.parameters, mine.trained.parameters, names, wanted / length)
        return replace(mine, trained=mine.trained._replace(parameters=moved))


@dataclass(frozen=True)
class MatchedKL:
    """Plain PPO whose update changes the policy as much as the one that another arm would make from here: `MatchedNorm`
    with the mean KL divergence over all records in the place of the length.

    The two differ with Adam, whose steps have a length of their own. `approx_kl` is of the rescaled update.

    other: the arm whose divergence is matched.
    """

    other: Arm

    def __call__(self, round: Round) -> Update:
        like = self.other(round)
        mine = Filtered(every=0)(round)
        names = policy_parameters(round.network, round.parameters)
        wanted = divergence(round, like.trained.parameters)

        def scaled(factor: float) -> Parameters:
            return _rescaled(round.parameters, mine.trained.parameters, names, factor)

        low, high = 0.0, 1.0 if np.isfinite(wanted) else np.nan  # as lost as the other
        while high < _FARTHEST and divergence(round, scaled(high)) < wanted:
            low, high = high, 2 * high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if divergence(round, scaled(middle)) < wanted else (low, middle)
        changed = jnp.asarray(divergence(round, scaled(high)))
        return replace(mine, trained=mine.trained._replace(parameters=scaled(high), approx_kl=changed))


@dataclass(frozen=True)
class Prioritised:
    """Minibatches drawn with replacement, in proportion to rank(|TD error|)^-exponent (Schaul et al. 2016, rank-based,
    without importance weights), in the number of steps that PPO takes.

    exponent: 0 draws uniformly; higher prefers large errors more.
    """

    exponent: float = 0.6

    def __call__(self, round: Round) -> Update:
        started = round.clock()
        error = np.abs(rankings.temporal_difference_errors(round).numpy())
        error[~round.batch.valid] = -1.0
        rank = np.empty(len(error))
        rank[np.argsort(-error, kind="stable")] = np.arange(1, len(error) + 1)
        weights = np.where(round.batch.valid, rank**-self.exponent, 0.0)
        chosen = round.clock()
        minibatches = draw_prioritised(round.order(), round.rule, weights / weights.sum())
        trained = round.train(minibatches)
        return Update(trained, minibatches.steps, None, None, chosen - started, round.clock() - chosen)


def policy_parameters(network: Network, parameters: Parameters) -> set[str]:
    """Names of the parameters that log pi depends on; a trunk that the value function shares is among them."""
    layers = {layer.name for layer in (*network.features, *network.policy) if layer.name}
    return {name for name in parameters if name.rpartition(".")[0] in layers or name == "log_std"}


def divergence(round: Round, parameters: Parameters) -> float:
    """Estimated KL divergence of the policy that collected the round to the one with these parameters, in nats: the
    mean of (r - 1) - log r over the records, r being the ratio of the action's probabilities (Schulman 2020, k3)."""
    batch = round.batch
    found = evaluation(round.network, parameters, batch.obs, batch.actions)
    log_ratio = found.log_prob - batch.log_probs
    return float(jnp.mean(jnp.exp(log_ratio) - 1 - log_ratio, where=batch.valid))


def _rescaled(start: Parameters, end: Parameters, names: set[str], factor: float) -> Parameters:
    """The end of an update, those parameters moved by a multiple of their difference."""
    return {name: start[name] + (p - start[name]) * factor if name in names else p for name, p in end.items()}


def _distance(one: Parameters, other: Parameters, names: set[str]) -> float:
    return float(jnp.sqrt(sum(jnp.sum((one[name] - other[name]) ** 2) for name in names)))
