"""Interventions on rounds of a run: replays and evaluations in processes side by side, a file per finished round."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rollsight import runs
from rollsight.analysis.intervention.arms import (
    BASELINE,
    ArmResult,
    Intervention,
    RoundResult,
    arms_by_list,
    arms_by_rule,
    difference,
    dropped,
    over_rounds,
)
from rollsight.arrays import Floats
from rollsight.environments.trained import MakeEnv, TrainedEnvironment, trained_environment
from rollsight.errors import RollsightError
from rollsight.playing.common_episodes import CommonEpisodes
from rollsight.processes import no_interrupts_inherited, start_worker, terminate
from rollsight.selection import DropNegative
from rollsight.snapshot import Snapshot
from rollsight.update import DropMode

Listed = Mapping[int, tuple[tuple[int, int], ...]]  # round -> (env, step) of each listed record
Played = dict[str, Any]  # of one order or of all: records, normalisation, and by arm returns, dropped and steps


@dataclass(frozen=True)
class InterventionSettings:
    """What is intervened on, and how.

    run: its folder.
    rounds: rounds with snapshots, each intervened on by itself.
    p: fraction of the negative-score units that the rule drops; higher drops more of them.
    unit: what is dropped, "record" or "episode".
    semantic: how: "repack" minibatches without the dropped records, or "mask" them in the loss.
    orders: minibatch orders per arm; more make the intervals narrower, at a replay each.
    episodes: of the evaluation of each replay; more make returns less noisy.
    seed: of every random stream.
    listed: the user's records in place of the rule's; None for the rule.
    """

    run: Path
    rounds: tuple[int, ...]
    p: float = 1.0
    unit: str = "record"
    semantic: DropMode = "repack"
    orders: int = 3
    episodes: int = 100
    seed: int = 0
    listed: Listed | None = None

    @property
    def rule(self) -> str:
        """What is left out, in words."""
        if self.listed is not None:
            return f"{sum(len(self.listed[round]) for round in self.rounds)} listed records"
        return f"p = {self.p:g} of the negative-score {self.unit}s"


def run_intervention(
    settings: InterventionSettings,
    *,
    processes: int = 1,
    out: Path | None = None,
    make_env: MakeEnv | None = None,
    on_progress: Callable[[int, int], None] = lambda done, tasks: None,
) -> Intervention:
    """Replay and evaluate every arm of the rounds, in several minibatch orders.

    out: folder for a file per finished round; rounds that it has already, with the same settings, are not run again.
    make_env: returns a new environment, in place of the one that is made again as the run describes it.
    on_progress: called with the finished and all tasks; a task is one minibatch order of one round.

    Raises:
        RollsightError: a round has no snapshot, a listed record does not exist, `out` holds other settings, the run's
            environment cannot be made again as it was trained in, or a policy cannot be played in it.
    """
    run = runs.open(settings.run)
    environments: dict[int, TrainedEnvironment] = {}
    for round in settings.rounds:
        same = next((one for one in environments.values() if not one.statistics), None)
        environments[round] = same or trained_environment(run, "nothing can be played", round=round, make_env=make_env)
    environment = environments[settings.rounds[0]]
    DropNegative(settings.p, settings.unit)  # complains about p now
    paths = {round: run.snapshot_path(round) for round in settings.rounds}
    for round, pairs in (settings.listed or {}).items():
        if round in paths:  # complains about unknown records now, not after an hour
            arms_by_list(Snapshot.load(paths[round]), pairs, order=0)
    done = _finished(settings, run.metadata, environment, out)
    tasks = [
        _Task(settings, paths[round], environments[round], round, order)
        for round in settings.rounds
        if round not in done
        for order in range(settings.orders)
    ]
    total = settings.orders * len(settings.rounds)
    on_progress(total - len(tasks), total)
    orders: dict[int, dict[int, Played]] = {}
    for count, (task, played) in enumerate(_run(tasks, processes), total - len(tasks) + 1):
        mine = orders.setdefault(task.round, {})
        mine[task.order] = played
        if len(mine) == settings.orders:
            done[task.round] = _joined([mine[order] for order in range(settings.orders)])
            if out is not None:
                _write(out / f"round-{task.round:06d}.json", done[task.round])
        on_progress(count, total)
    return _result(settings, environment.name, done)


@dataclass(frozen=True)
class _Task:
    """One replay: all arms of a round in one minibatch order.

    settings: of the whole intervention.
    snapshot: the round's snapshot file.
    environment: how to make the environment.
    round: number of the round.
    order: number of the minibatch order.
    """

    settings: InterventionSettings
    snapshot: Path
    environment: TrainedEnvironment
    round: int
    order: int


def _play(task: _Task) -> Played:
    """One minibatch order of one round: every arm replayed and played."""
    settings, order = task.settings, task.order
    snapshot = replace(Snapshot.load(task.snapshot), threads=1)
    if settings.listed is None:
        rule = DropNegative(settings.p, settings.unit)
        arms = arms_by_rule(snapshot, rule, order, settings.seed)
    else:
        arms = arms_by_list(snapshot, settings.listed[task.round], order, settings.seed)
    episodes = CommonEpisodes(task.environment.vectorised, settings.episodes, (settings.seed, task.round))
    played: dict[str, dict[str, Any]] = {}
    for name, weights in arms.items():
        # Other seeds have other minibatch orders too.
        replay = snapshot.replay(settings.semantic, weights, order=settings.seed * settings.orders + order)
        played[name] = {
            "returns": episodes(replay.policy.module).tolist(),
            "dropped": dropped(weights, snapshot.records),
            "steps": replay.steps,
        }
    episodes.close()
    update = "minibatch" if snapshot.rule.normalize_advantage else "raw"
    return {
        "records": int(snapshot.records.valid_rows.sum()),
        "normalisation": f"scores {snapshot.rule.policy_term().normalisation}, update {update}",
        "arms": played,
    }


def _run(tasks: list[_Task], processes: int) -> Iterator[tuple[_Task, Played]]:
    if processes == 1:
        for task in tasks:
            yield task, _play(task)
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=start_worker) as pool:
        try:
            with no_interrupts_inherited():
                futures = {pool.submit(_play, task): task for task in tasks}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            terminate(pool)
            raise


def _joined(orders: list[Played]) -> Played:
    """The orders' results of each arm, side by side."""
    arms = {
        arm: {name: [played["arms"][arm][name] for played in orders] for name in entries}
        for arm, entries in orders[0]["arms"].items()
    }
    return {**orders[0], "arms": arms}


def _result(settings: InterventionSettings, env: str, done: Mapping[int, Played]) -> Intervention:
    rounds, changes = [], dict[str, list[Floats]]()
    for round in settings.rounds:
        key = (settings.seed, round)
        arms = done[round]["arms"]
        returns = {name: np.array(entries["returns"]) for name, entries in arms.items()}
        results = {}
        for name, entries in arms.items():
            change = None
            if name != BASELINE:
                change = difference(returns[name], returns[BASELINE], key)
                changes.setdefault(name, []).append(returns[name] - returns[BASELINE])
            results[name] = ArmResult(returns[name], tuple(entries["dropped"]), tuple(entries["steps"]), change)
        rounds.append(RoundResult(round, done[round]["records"], results))
    keys = [(settings.seed, round) for round in settings.rounds]
    treated = next(name for name in changes if name != "random")
    contrast = [one - other for one, other in zip(changes[treated], changes["random"], strict=True)]
    return Intervention(
        env=env,
        rule=settings.rule,
        semantic=settings.semantic,
        target="return" if settings.listed is None else "none: the records were listed",
        normalisation=done[settings.rounds[0]]["normalisation"],
        orders=settings.orders,
        episodes=settings.episodes,
        seed=settings.seed,
        rounds=tuple(rounds),
        summary={name: over_rounds(values, keys) for name, values in changes.items()},
        over_random=over_rounds(contrast, keys),
    )


def _finished(
    settings: InterventionSettings, metadata: Mapping[str, Any], environment: TrainedEnvironment, out: Path | None
) -> dict[int, Played]:
    """The rounds that `out` has; writes the settings there first."""
    if out is None:
        return {}
    listed = None
    if settings.listed is not None:
        listed = hashlib.sha256(repr(sorted(settings.listed.items())).encode()).hexdigest()
    more = {"listed": listed, "run_created": metadata.get("created"), "environment": environment.identity}
    mine = runs.jsonable({**asdict(settings), **more})
    for name in ("run", "rounds"):  # a run may move, and rounds may be added
        mine.pop(name)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "settings.json"
    if path.exists():
        theirs = _read(path)
        wrong = [
            f"{name} {theirs.get(name)!r} instead of {mine[name]!r}" for name in mine if theirs.get(name) != mine[name]
        ]
        if wrong:
            raise RollsightError(f"{out} holds an intervention with {', '.join(wrong)}: choose another --out")
    elif any(out.iterdir()):
        raise RollsightError(f"{out} is not empty and holds no intervention: choose another --out")
    else:
        _write(path, mine)
    found = {round: out / f"round-{round:06d}.json" for round in settings.rounds}
    return {round: _read(path) for round, path in found.items() if path.exists()}


def _write(path: Path, content: Any) -> None:
    with runs.whole_file(path) as temporary:
        temporary.write_text(json.dumps(content), "utf-8")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise RollsightError(f"{path} is damaged ({error}): remove it and run again") from error
