"""`diagnose_round`: a round of a run folder, its bottom, top and random records branched and compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollsight.analysis.diagnosis import statistics as stats
from rollsight.analysis.diagnosis.advantages import Estimate, Experiment, estimate_all
from rollsight.analysis.diagnosis.branching import EXPLAINED, Method, choose_method
from rollsight.analysis.diagnosis.round_data import TARGET, RoundData
from rollsight.arrays import Array, Bools, Ints
from rollsight.environments.states import can_be_set
from rollsight.errors import RollsightError
from rollsight.runs import column_as_floats
from rollsight.scoring.ranks import spearman
from rollsight.streams import Purpose, stream


@dataclass(frozen=True)
class DiagnosedRecord:
    """One branched record.

    row: in the round's buffer.
    groups: the samples it belongs to, of "bottom", "top" and "random".
    env: number of its environment.
    step: step of the rollout.
    episode: number of its episode in the run.
    episode_step: steps since the episode began.
    obs: the observation, as the policy saw it.
    action: the action, as the policy sampled it.
    score: its influence on the target.
    quintile: of all scored records of the round; 0 holds the lowest scores.
    a_hat: the advantage that the trainer used.
    a_bar: the Monte-Carlo advantage, q_bar - v_bar.
    a_bar_error: standard error of a_bar.
    q_bar: mean discounted return of branches that begin with the record's action.
    v_bar: mean discounted return of branches that begin with a sampled action.
    mismatch: whether a_hat and a_bar differ in sign; None where |a_bar| is within two standard errors.
    tabular: the paper's estimate of the advantage from repeats in the buffer; None where there are none.
    """

    row: int
    groups: tuple[str, ...]
    env: int
    step: int
    episode: int
    episode_step: int
    obs: Any
    action: Any
    score: float
    quintile: int
    a_hat: float
    a_bar: float
    a_bar_error: float
    q_bar: float
    v_bar: float
    mismatch: bool | None
    tabular: float | None


@dataclass(frozen=True)
class Tabular:
    """The same comparison with the paper's tabular estimate, which has no standard error: every sign counts.

    groups: by name of a sample, how well A_hat agrees with the tabular estimate.
    correlation: of the influence with tabular * A_hat, on the random sample.
    agreement: rank correlation of the tabular estimate with A_bar, on the random sample.
    """

    groups: dict[str, stats.Agreement]
    correlation: stats.Correlation
    agreement: float


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose_round` found.

    run: the run folder.
    env: name of the environment.
    round: the diagnosed round.
    target: what the scores explain.
    method: how branches get to a record's state.
    how: the same in a sentence.
    gamma: discount factor of the branches' returns.
    branches: branches per record and kind of action.
    seed: of every random stream.
    asked: branched records wanted.
    done: branched records made before time ran out.
    seconds: time that the branches took.
    steps: environment steps of all branches.
    negative_share: share of the valid records with a negative score.
    groups: by name of a sample, how well A_hat agrees with A_bar.
    quintiles: the same by influence quintile, lowest first, on the random sample.
    unit: what the bootstrap of the correlation resamples.
    correlation: of the influence with A_bar * A_hat on the random sample.
    tabular: the comparison with the paper's estimate; None where too few states repeat.
    harm: the harmful mass of the whole round by action (None unless actions are discrete), phase and environment.
    notes: sentences that a reader must know.
    records: the branched records.
    """

    run: str
    env: str
    round: int
    target: str
    method: Method
    how: str
    gamma: float
    branches: int
    seed: int
    asked: int
    done: int
    seconds: float
    steps: int
    negative_share: float
    groups: dict[str, stats.Agreement]
    quintiles: list[stats.Agreement]
    unit: str
    correlation: stats.Correlation
    tabular: Tabular | None
    harm: dict[str, list[stats.Mass] | None]
    notes: list[str]
    records: list[DiagnosedRecord]

    def group(self, name: str) -> list[DiagnosedRecord]:
        """The records of a group: bottom and top with the most extreme first."""
        inside = [record for record in self.records if name in record.groups]
        sign = {"bottom": 1, "top": -1}.get(name, 0)
        return sorted(inside, key=lambda record: sign * record.score)


def check_options(records: int, branches: int, seconds: float | None, processes: int, seed: int) -> None:
    """Raise `RollsightError` naming the first option that is out of range."""
    limits = (("records", records, 4), ("branches", branches, 2), ("processes", processes, 1), ("seed", seed, 0))
    for name, value, least in limits:
        if value < least:
            raise RollsightError(f"--{name} must be at least {least}, not {value}")
    if seconds is not None and not seconds > 0:
        raise RollsightError(f"--seconds must be positive, not {seconds:g}")


def diagnose_round(
    data: RoundData,
    *,
    records: int = 200,
    branches: int = 100,
    seconds: float | None = None,
    seed: int = 0,
    processes: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, asked: None,
) -> Diagnosis:
    """Branch the bottom, top and random records of a round, and compare A_bar with the buffer's A_hat.

    A_bar counts rewards to the end of the episode, the time limit included; hosts put the value function there.
    records: branched in all, a quarter bottom, a quarter top, half random; branches: episodes each for Q and for V.
    seconds: stop when they are over, and say how far it got. on_progress: called with records done and asked for.

    Raises `RollsightError` where the environment cannot be branched.
    """
    check_options(records, branches, seconds, processes, seed)
    if not data.scored.any():
        raise RollsightError(f"round {data.round} of {data.run.path} has no valid record with a score")
    started = time.time()
    env = data.environment.alone()
    points = {row: data.point(row) for row in np.flatnonzero(data.scored).tolist()}
    settable = can_be_set(env)
    eligible = data.scored.copy()
    eligible[[row for row, point in points.items() if not (settable or point.replayable)]] = False
    rng = stream(seed, data.round, Purpose.BRANCHED_RECORDS)
    chosen = stats.choose_records(data.scores, eligible if eligible.any() else data.scored, records, rng)
    # In random order, so that what is done when time runs out is a fair part of each group.
    ordered = [points[row] for row in rng.permutation(chosen.rows).tolist()]
    method = choose_method(lambda: env, data.see, ordered, data.tolerance)
    deadline = None if seconds is None else started + seconds
    experiment = data.experiment(method, branches, seed, deadline)
    done: list[Estimate] = []

    def on_done(estimate: Estimate) -> None:
        done.append(estimate)
        on_progress(len(done), len(ordered))

    on_progress(0, len(ordered))
    estimates = estimate_all(experiment, ordered, processes, on_done)
    if not estimates:
        raise RollsightError(f"no record was done within {seconds:g} s: give more --seconds or fewer --branches")
    notes = _notes(data, eligible, len(ordered) - len(estimates), seconds)
    return _summarise(data, experiment, chosen, estimates, len(ordered), time.time() - started, notes)


def _summarise(
    data: RoundData,
    experiment: Experiment,
    chosen: stats.Chosen,
    estimates: Sequence[Estimate],
    asked: int,
    seconds: float,
    notes: list[str],
) -> Diagnosis:
    n = len(data.scores)
    a_bar, error = np.full(n, np.nan), np.full(n, np.nan)
    rows = [estimate.row for estimate in estimates]
    a_bar[rows] = [estimate.advantage for estimate in estimates]
    error[rows] = [estimate.error for estimate in estimates]
    groups = {name: index[np.isfinite(a_bar[index])] for name, index in chosen.groups.items()}
    random = groups["random"]
    quintile = stats.quintile_of(data.scores, data.scored)
    tabular = data.tabular()
    unit, units = data.units()
    key = (experiment.seed, data.round, Purpose.BOOTSTRAP)

    def agreement(index: Ints) -> stats.Agreement:
        return stats.agreement(a_bar[index], error[index], data.a_hat[index])

    def correlate(advantage: Array, index: Ints) -> stats.Correlation:
        product = advantage[index] * data.a_hat[index]
        return stats.correlate(data.scores[index], product, units[index], stream(*key))

    actions = data.actions()
    phases = stats.phase_of(data.episode, data.episode_step, data.lengths())
    keys = {"action": actions, "phase": phases, "env": data.env}
    return Diagnosis(
        run=str(data.run.path),
        env=data.env_id,
        round=data.round,
        target=TARGET,
        method=experiment.method,
        how=EXPLAINED[experiment.method],
        gamma=data.gamma,
        branches=experiment.branches,
        seed=experiment.seed,
        asked=asked,
        done=len(estimates),
        seconds=seconds,
        steps=sum(estimate.steps for estimate in estimates),
        negative_share=float(np.mean(data.scores[data.scored] < 0)),
        groups={name: agreement(index) for name, index in groups.items()},
        quintiles=[agreement(random[quintile[random] == q]) for q in range(stats.QUINTILES)],
        unit=unit,
        correlation=correlate(a_bar, random),
        tabular=None if tabular is None else _tabular(tabular, a_bar, data.a_hat, groups, correlate),
        harm={k: None if v is None else stats.harmful_mass(data.scores, v, data.scored) for k, v in keys.items()},
        notes=notes,
        records=[described(data, estimate, groups, int(quintile[estimate.row]), tabular) for estimate in estimates],
    )


def _tabular(
    tabular: Array, a_bar: Array, a_hat: Array, groups: dict[str, Ints], correlate: Callable[..., Any]
) -> Tabular:
    known = {name: index[np.isfinite(tabular[index])] for name, index in groups.items()}
    random = known["random"]
    return Tabular(
        {name: stats.agreement(tabular[i], np.zeros(len(i)), a_hat[i]) for name, i in known.items()},
        correlate(tabular, random),
        spearman(tabular[random], a_bar[random]),
    )


def described(
    data: RoundData, estimate: Estimate, groups: dict[str, Ints], quintile: int, tabular: Array | None
) -> DiagnosedRecord:
    """An estimate with what the round says of its record. groups: name of a sample -> its rows; quintile: of the
    record's score; tabular: (N,) the paper's estimates."""
    row, a_hat = estimate.row, float(data.a_hat[estimate.row])
    counted, wrong = stats.mismatches(*(np.array([x]) for x in (estimate.advantage, estimate.error, a_hat)))
    return DiagnosedRecord(
        row=row,
        groups=tuple(name for name, index in groups.items() if row in index),
        env=int(data.env[row]),
        step=data.cell("step", row),
        episode=int(data.episode[row]),
        episode_step=int(data.episode_step[row]),
        obs=data.cell("obs", row) if "obs" in data.table.column_names else None,
        action=data.cell("action", row),
        score=float(data.scores[row]),
        quintile=quintile,
        a_hat=a_hat,
        a_bar=estimate.advantage,
        a_bar_error=estimate.error,
        q_bar=estimate.q,
        v_bar=estimate.q - estimate.advantage,
        mismatch=bool(wrong[0]) if counted[0] else None,
        tabular=None if tabular is None or not np.isfinite(tabular[row]) else float(tabular[row]),
    )


def _notes(data: RoundData, eligible: Bools, late: int, seconds: float | None) -> list[str]:
    notes = []
    if late:
        notes.append(f"the {seconds:g} s were over before {late} of the records were branched")
    if left := int((data.scored & ~eligible).sum()):
        notes.append(f"{left} records cannot be branched (the run lacks the start of their episodes): none was chosen")
    return [*notes, *unit_notes(data)]


def unit_notes(data: RoundData) -> list[str]:
    """What a reader must know where A_hat and A_bar are not in the same units."""
    records, units = data.snapshot.records, data.run.metadata.get("units") or {}
    if units.get("advantage") != units.get("reward"):
        return [f"A_hat is in units of {units['advantage']}; A_bar in units of {units['reward']}"]
    if records.rewards is not None:
        env_rewards = column_as_floats(data.table, "reward")
        if np.median(np.abs(records.rewards.cpu().numpy() - env_rewards)) > 1e-6:
            return ["training rewards were rescaled: A_hat is in their units, A_bar in the environment's own"]
    return []
