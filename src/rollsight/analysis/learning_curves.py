"""Learning curves of several runs, arm against arm: final return, area under the curve, paired differences.

A run's *final return* is the mean over the last tenth of the rounds (at least one), its *area under the curve* the mean
over all rounds, so both are in units of return. Round 0, before training, is drawn but never counted.
Intervals are 95 % Student t-intervals over seeds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rollsight.analysis.drawing import new_figure, save_figure
from rollsight.analysis.intervals import Interval, band, t_interval
from rollsight.arrays import Floats, Ints
from rollsight.errors import RollsightError
from rollsight.escaping import plain_label
from rollsight.runs import Run, column_as_floats, spell

Measure = Literal["evaluation return", "training return"]


@dataclass(frozen=True)
class Curve:
    """One run's learning curve.

    rounds: (R,) numbers of the rounds.
    returns: (R,) mean return after each.
    """

    rounds: Ints
    returns: Floats

    def at(self, rounds: Sequence[int]) -> Floats:
        """The returns (len(rounds),) after these rounds, which the curve must have."""
        return self.returns[np.searchsorted(self.rounds, rounds)]


@dataclass(frozen=True)
class Arm:
    """One way of training: its runs over seeds, and its paired difference to the baseline on common seeds.

    name: as the tables show it.
    runs: number of runs.
    final: return at the end of training.
    area: mean return over all rounds.
    final_difference: to the baseline's final return; None for the baseline and where there is no common seed.
    area_difference: to the baseline's area; None likewise.
    mean: (R,) the mean learning curve over the comparison's rounds.
    half_width: (R,) of its 95 % interval; NaN for one seed.
    """

    name: str
    runs: int
    final: Interval
    area: Interval
    final_difference: Interval | None
    area_difference: Interval | None
    mean: Floats
    half_width: Floats


@dataclass(frozen=True)
class Comparison:
    """The arms of one environment.

    env: name of the environment.
    measure: what the curves show.
    rounds: (R,) rounds that all runs have.
    baseline: name of the arm that the others are compared with.
    arms: the arms, the baseline among them.
    notes: sentences that a reader must know.
    """

    env: str
    measure: Measure
    rounds: Ints
    baseline: str
    arms: list[Arm]
    notes: list[str]


def evaluation_curve(run: Run) -> Curve | None:
    """Mean evaluation return after each evaluated round, None where the run has no evaluations after training."""
    if not any(run.evaluation_rounds):
        return None
    rows = run.rows("evaluations", ["round", "return"])
    rounds, place = np.unique(np.array(rows["round"].to_pylist()), return_inverse=True)
    returns = column_as_floats(rows, "return")
    return Curve(rounds, np.bincount(place, returns) / np.bincount(place))


def training_curve(run: Run) -> Curve | None:
    """Mean return of the episodes that finished in each round, of language models their mean reward; a round without
    one repeats the last mean.

    Starts with the first round in which an episode finished; None where there is none.
    """
    rows = run.rows("rounds", ["round", "return_mean", "reward_mean"])
    name = "reward_mean" if rows["return_mean"].null_count == len(rows) else "return_mean"
    means = rows[name].to_pylist()
    first = next((i for i, mean in enumerate(means) if mean is not None), None)
    if first is None:
        return None
    returns: list[float] = []
    for value in means[first:]:
        returns.append(returns[-1] if value is None else value)
    return Curve(np.array(rows["round"].to_pylist())[first:], np.array(returns, np.float64))


def final_return(rounds: Ints, returns: Floats) -> float:
    """Mean of the returns (R,) over the last tenth of the rounds (R,), at least the last one."""
    window = max(1, int(rounds[-1]) // 10)
    return float(returns[rounds > rounds[-1] - window].mean())


def compare_runs(runs: Sequence[Run], baseline: str | None = None) -> list[Comparison]:
    """Compare the runs, one comparison per environment in order of appearance.

    Runs belong to the environment, arm and seed in their metadata (`env`, `arm`, `seed`; where no arm is given, the
    run's name without its seed). Several runs of one arm and seed count as one, their mean. The baseline of the paired
    differences is the first arm unless named.

    Raises:
        RollsightError: no environment has the named baseline, a run has no returns, or runs share no rounds.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(str(run.metadata.get("env", "unknown environment")), []).append(run)
    arms = {run.arm for run in runs}
    if baseline is not None and baseline not in arms:
        raise RollsightError(f"no run belongs to the arm {baseline!r}: the arms are {', '.join(sorted(arms))}")
    return [_compare(env, group, baseline) for env, group in groups.items()]


def _seed(run: Run) -> str:
    # Without a seed there is nothing to pair or to pool: every run stands for itself.
    seed = run.metadata.get("seed")
    return f"run {run.path}" if seed is None else str(seed)


def _compare(env: str, runs: list[Run], baseline: str | None) -> Comparison:
    notes: list[str] = []
    curves, measure = _curves(runs, notes)
    rounds = _common_rounds(env, curves, notes)
    counted = rounds[rounds > 0]

    seeds: dict[str, dict[str, Floats]] = {}  # arm -> seed -> returns (R,), the mean over runs of the same seed
    sizes: dict[str, int] = {}
    for arm in dict.fromkeys(run.arm for run in runs):
        members = [
            (_seed(run), curve.at(rounds.tolist())) for run, curve in zip(runs, curves, strict=True) if run.arm == arm
        ]
        seeds[arm] = {
            seed: np.mean([r for s, r in members if s == seed], axis=0) for seed in dict.fromkeys(s for s, _ in members)
        }
        sizes[arm] = len(members)
        if len(seeds[arm]) < len(members):
            notes.append(f"{arm}: several runs of the same seed count as one, their mean ({len(seeds[arm])} seeds)")

    reference = baseline if baseline in seeds else next(iter(seeds))
    if baseline is not None and baseline not in seeds:
        notes.append(f"no run of the arm {baseline} here: differences are to {reference}")
    scores = {
        arm: {s: (final_return(counted, r[rounds > 0]), float(r[rounds > 0].mean())) for s, r in by_seed.items()}
        for arm, by_seed in seeds.items()
    }
    arms = [
        _summarise(arm, sizes[arm], seeds[arm], scores[arm], scores[reference] if arm != reference else None)
        for arm in seeds
    ]
    return Comparison(env, measure, rounds, reference, arms, notes)


def _summarise(
    name: str,
    runs: int,
    returns: dict[str, Floats],
    scores: dict[str, tuple[float, float]],
    reference: dict[str, tuple[float, float]] | None,
) -> Arm:
    common = [seed for seed in scores if reference is not None and seed in reference]

    def difference(which: int) -> Interval | None:
        if reference is None or not common:
            return None
        return t_interval([scores[seed][which] - reference[seed][which] for seed in common])

    mean, half_width = band(list(returns.values()))
    return Arm(
        name=name,
        runs=runs,
        final=t_interval([final for final, _ in scores.values()]),
        area=t_interval([area for _, area in scores.values()]),
        final_difference=difference(0),
        area_difference=difference(1),
        mean=mean,
        half_width=half_width,
    )


def _curves(runs: list[Run], notes: list[str]) -> tuple[list[Curve], Measure]:
    """The evaluation curves of the runs, or, where one has none, the training curves of all: never one of each."""
    evaluated = [evaluation_curve(run) for run in runs]
    without = [run.name for run, curve in zip(runs, evaluated, strict=True) if curve is None]
    if not without:
        return [curve for curve in evaluated if curve is not None], "evaluation return"
    who = "no run has evaluations" if len(without) == len(runs) else f"no evaluations in {', '.join(without)}"
    notes.append(f"{who}: these are the returns of training episodes")
    trained = [training_curve(run) for run in runs]
    for run, curve in zip(runs, trained, strict=True):
        if curve is None:
            raise RollsightError(f"{run.path} has no evaluations and no finished episode to compare: leave it out")
    return [curve for curve in trained if curve is not None], "training return"


def _common_rounds(env: str, curves: list[Curve], notes: list[str]) -> Ints:
    sets = [set(curve.rounds.tolist()) for curve in curves]
    common, counted = set.intersection(*sets), set.union(*sets) - {0}
    shared = common - {0}
    if not shared:
        raise RollsightError(f"the runs of {env} share no rounds with returns: compare runs with the same schedule")
    if shared != counted:
        notes.append(f"the runs have different rounds: compared over those all have, {describe_rounds(shared)}")
    return np.array(sorted(common))


def describe_rounds(rounds: Iterable[int]) -> str:
    """Such as "rounds 1-50", or "5 rounds from 10 to 50" where not every round is there."""
    counted = sorted(number for number in rounds if number > 0)
    if counted[-1] - counted[0] + 1 == len(counted):
        return f"rounds {spell(counted)}"
    return f"{len(counted)} rounds from {counted[0]} to {counted[-1]}"


def draw_curves(comparisons: Sequence[Comparison], path: Path) -> Path:
    """Draw the learning curves, mean and 95 % band of each arm, one panel per environment.

    Raises:
        RollsightError: the file cannot be written.
    """
    figure = new_figure(6.4 * len(comparisons), 4.2)
    for index, comparison in enumerate(comparisons):
        axes = figure.add_subplot(1, len(comparisons), index + 1)
        for arm in comparison.arms:
            (line,) = axes.plot(
                comparison.rounds, arm.mean, label=f"{plain_label(arm.name)} ({arm.final.n} seeds)", linewidth=1.6
            )
            low, high = arm.mean - arm.half_width, arm.mean + arm.half_width
            axes.fill_between(comparison.rounds, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(title=plain_label(comparison.env), xlabel="round", ylabel=f"mean {comparison.measure}")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return save_figure(figure, path)
