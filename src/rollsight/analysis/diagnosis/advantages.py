"""Monte-Carlo advantages: `A_bar(s, a) = Q_bar(s, a) - V_bar(s)` from environments branched at a record's state."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rollsight.analysis.diagnosis.branching import Brancher, Method
from rollsight.arrays import Array, Bools, Floats
from rollsight.environments.states import EXACT, BranchPoint, Env
from rollsight.environments.trained import TrainedEnvironment
from rollsight.playing.actor import Actor
from rollsight.processes import no_interrupts_inherited, start_worker, terminate
from rollsight.records import Rows, take_rows
from rollsight.snapshot import Snapshot
from rollsight.streams import Purpose, sequence

_ROUNDING = 1e-12  # of the returns: a smaller difference between their means is none
NEGLIGIBLE = 1e-5  # a branch ends where rewards are discounted by more than this


@dataclass(frozen=True)
class Estimate:
    """Monte-Carlo estimates of one record.

    row: the record's row in the round's buffer.
    q: mean discounted return after the record's action.
    advantage: q minus the mean discounted return after a sampled action.
    error: standard error of the advantage.
    steps: environment steps of all its branches together.
    """

    row: int
    q: float
    advantage: float
    error: float
    steps: int


@dataclass(frozen=True)
class Experiment:
    """What the branches of a round have in common, for worker processes to set up: paths and plain values.

    snapshot: the round's snapshot file.
    environment: how to make the environment.
    method: how a branch gets to the record's state: set it, or replay the episode.
    branches: branches per record and kind of action; more make the estimates less noisy, in proportion to the time.
    gamma: discount factor of the returns.
    seed: of every random stream, keyed by (seed, round, purpose, record): no result depends on the number of processes.
    round: the round's number.
    deadline: in `time.time()`; a record that is not done by then is given up. None: no limit.
    tolerance: of `branching.replay`: how far a replayed observation may be from the recorded one.
    """

    snapshot: Path
    environment: TrainedEnvironment
    method: Method
    branches: int
    gamma: float
    seed: int
    round: int
    deadline: float | None = None
    tolerance: float = EXACT

    def make(self) -> Env:
        return self.environment.alone()


class Worker:
    """Estimates one record after the other, with environments that are used again."""

    def __init__(self, experiment: Experiment) -> None:
        torch.set_num_threads(1)  # the batches are small
        self._experiment = experiment
        snapshot = Snapshot.load(experiment.snapshot)
        self._actor = Actor(snapshot.policy)
        self._obs, self._log_probs = snapshot.records.obs, snapshot.records.log_probs
        see = lambda obs: flat(self._actor.see([obs]))  # noqa: E731
        self._brancher = Brancher(experiment.make, experiment.method, see, experiment.tolerance)

    def estimate(
        self, point: BranchPoint, on_ended: Callable[[int, int], None] = lambda ended, total: None
    ) -> Estimate | None:
        """The advantage of one record; None where the deadline passed. on_ended: as of `roll_out`."""
        given, count = self._experiment, self._experiment.branches
        if given.deadline is not None and time.time() > given.deadline:
            return None
        key = sequence(given.seed, given.round, Purpose.BRANCHES, point.row)
        policy_seed, *env_seeds = key.spawn(1 + 2 * count)
        environments = self._brancher.branch(point, env_seeds)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(policy_seed.generate_state(1, np.uint64)[0] >> 1))
            sampled = self._actor.act(take_rows(self._obs, torch.full((count,), point.row)))
            first = [point.action] * count + list(sampled)
            rolled = roll_out(environments, first, self._actor, given.gamma, given.deadline, on_ended)
        if rolled is None:
            return None
        returns, steps = rolled
        same = np.arange(2 * count) < count
        probability = 0.0
        if np.ndim(point.action) == 0:
            same[count:] = sampled == point.action
            probability = float(torch.exp(self._log_probs[point.row]))
        return Estimate(point.row, *advantage_from(returns, same, count, probability), steps)


def advantage_from(returns: Floats, same: Bools, fixed: int, probability: float) -> tuple[float, float, float]:
    """Q_bar, A_bar and A_bar's standard error from the returns (n,) of one record's branches.

    same: (n,) whether a branch took the record's action first; the first `fixed` were made to, the others sampled.
    probability: of that action under the policy, 0 for continuous ones.

    With V = pi(a) Q(a) + (1 - pi(a)) Q(not a), the sampled branches that happened to take the action too are repeats
    of Q(a), and A = (1 - pi(a)) (Q(a) - Q(not a)): the same mean as Q_bar - V_bar, and (1 - pi) / (1 + pi) times its
    variance where the two have equal spread. The plain difference is left where fewer than two took another action.
    """
    if (~same).sum() < 2:
        same, probability = np.arange(len(returns)) < fixed, 0.0
    means, errors = zip(*(_mean_and_error(returns[part]) for part in (same, ~same)), strict=True)
    rest = 1 - probability
    advantage, error = rest * (means[0] - means[1]), rest * float(np.hypot(*errors))
    if abs(advantage) <= _ROUNDING * float(np.abs(returns).max()):
        advantage, error = 0.0, (0.0 if error <= _ROUNDING * float(np.abs(returns).max()) else error)
    return means[0], advantage, error


def _mean_and_error(x: Floats) -> tuple[float, float]:
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x)))


def roll_out(
    environments: Sequence[Env],
    first: Sequence[Any],
    actor: Actor,
    gamma: float,
    deadline: float | None = None,
    on_ended: Callable[[int, int], None] = lambda ended, total: None,
) -> tuple[Floats, int] | None:
    """Discounted returns (n,) of n environments to the end of their episodes, and the number of steps made.

    first: their first actions; the policy samples the rest, in one call per step for all that still run.
    on_ended: called with the number of episodes that are over, and of all, whenever some ended.
    None where the deadline passed.
    """
    returns, steps, discount = np.zeros(len(environments)), 0, 1.0
    running, actions = list(range(len(environments))), list(first)
    while running and discount > NEGLIGIBLE:
        if deadline is not None and time.time() > deadline:
            return None
        going, observations = [], []
        for index, action in zip(running, actions, strict=True):
            obs, reward, terminated, truncated, _ = environments[index].step(action)
            returns[index] += discount * float(reward)
            if not (terminated or truncated):
                going.append(index)
                observations.append(obs)
        steps += len(running)
        discount *= gamma
        if len(going) < len(running):
            on_ended(len(environments) - len(going), len(environments))
        running = going
        if running:
            actions = list(actor.act(actor.see(observations)))
    return returns, steps


def estimate_all(
    experiment: Experiment,
    points: Sequence[BranchPoint],
    processes: int = 1,
    on_done: Callable[[Estimate], None] = lambda estimate: None,
) -> list[Estimate]:
    """The advantages of the records in their order; without those that the deadline cut off."""
    processes = min(processes, len(points))
    if processes <= 1:
        worker = Worker(experiment)
        done = {}
        for point in points:
            if (estimate := worker.estimate(point)) is None:
                break
            done[point.row] = estimate
            on_done(estimate)
    else:
        done = _in_processes(experiment, points, processes, on_done)
    return [done[point.row] for point in points if point.row in done]


def _in_processes(
    experiment: Experiment, points: Sequence[BranchPoint], processes: int, on_done: Callable[[Estimate], None]
) -> dict[int, Estimate]:
    done: dict[int, Estimate] = {}
    # Not fork: torch's threads do not survive it.
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(experiment,)) as pool:
        try:
            with no_interrupts_inherited():
                waiting = {pool.submit(_estimate, point) for point in points}
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    if (estimate := future.result()) is not None:
                        done[estimate.row] = estimate
                        on_done(estimate)
        except BaseException:
            terminate(pool)
            raise
    return done


_worker: Worker | None = None  # of a worker process


def _start_worker(experiment: Experiment) -> None:
    global _worker
    start_worker()
    _worker = Worker(experiment)


def _estimate(point: BranchPoint) -> Estimate | None:
    assert _worker is not None
    return _worker.estimate(point)


def flat(rows: Rows) -> Array:
    """The first row of an observation or of a dict of them, as flat numbers."""
    if isinstance(rows, torch.Tensor):
        return rows[0].reshape(-1).cpu().numpy()
    return np.concatenate([rows[name][0].reshape(-1).double().cpu().numpy() for name in sorted(rows)])
