"""A round of a run folder, for diagnosis: its columns, its snapshot, and where its records stand in their episodes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor

from rollsight.analysis.diagnosis.advantages import Experiment, flat
from rollsight.analysis.diagnosis.branching import Method
from rollsight.analysis.discounts import discounts_of
from rollsight.arrays import Array, Ints
from rollsight.environments.states import DRIFTING, EXACT, BranchPoint
from rollsight.environments.trained import MakeEnv, trained_environment
from rollsight.errors import RollsightError
from rollsight.playing.actor import Actor
from rollsight.playing.spaces import check_spaces
from rollsight.records import Rows, take_rows
from rollsight.runs import Run, column_as_floats, scored_records
from rollsight.snapshot import Snapshot
from rollsight.tabular import observed_returns, tabular_advantages

TARGET = "return"


class RoundData:
    """A round's stored columns, its snapshot and what else the run holds of its episodes.

    Raises `RollsightError` where the round has no scores or no snapshot, or its policy cannot act on its own.
    """

    def __init__(self, run: Run, round: int, make_env: MakeEnv | None = None) -> None:
        self.run, self.round = run, round
        if TARGET not in run.targets(round):
            raise RollsightError(f"round {round} of {run.path} stores no scores of {TARGET!r}: choose a scored round")
        self.snapshot_path = run.snapshot_path(round)
        self.snapshot = Snapshot.load(self.snapshot_path)
        self.actor = Actor(self.snapshot.policy)
        self.table = run.records(round)
        missing = {"episode", "episode_step", "reward", "episode_return"} - set(self.table.column_names)
        if missing:
            raise RollsightError(f"the records of {run.path} have no column {min(missing)!r}, which diagnose needs")
        self.environment = trained_environment(run, "its records cannot be branched", round=round, make_env=make_env)
        self.tolerance = DRIFTING if self.environment.statistics else EXACT
        check_spaces(self.snapshot.policy.module, *_spaces(self.environment.alone()))
        self.env_id = self.environment.name
        self.gamma = discounts_of(run, "its records cannot be branched")["gamma"]
        self.scores = column_as_floats(self.table, f"score_{TARGET}")
        self.scored = scored_records(self.table, self.scores)
        self.a_hat = column_as_floats(self.table, "advantage")
        self.episode, self.episode_step, self.env = (self._integers(n) for n in ("episode", "episode_step", "env"))
        self._prefixes = self._read_prefixes()

    def experiment(self, method: Method, branches: int, seed: int, deadline: float | None = None) -> Experiment:
        """What is common to the branches of this round."""
        where = self.snapshot_path, self.environment
        return Experiment(*where, method, branches, self.gamma, seed, self.round, deadline, self.tolerance)

    def see(self, observation: Any) -> Array:
        return flat(self.actor.see([observation]))

    def point(self, row: int) -> BranchPoint:
        """Where a record stands, with its prefix where the run holds it."""
        step = int(self.episode_step[row])
        start, actions = self._prefixes.get(int(self.episode[row]), (None, np.empty(0)))
        known = start is not None and len(actions) >= step
        action = self.actor.executable(self.snapshot.records.actions[row : row + 1].cpu().numpy())[0]  # type: ignore[index]
        obs = flat(take_rows(self.snapshot.records.obs, slice(row, row + 1)))
        return BranchPoint(row, step, obs, action, start if known else None, actions[:step] if known else None)

    def lengths(self) -> dict[int, int]:
        """Lengths of the round's episodes that are finished in the run."""
        rows = self.run.sql(
            "select episode, max(episode_step) + 1 from records where episode in "
            f"(select episode from records where round = {self.round}) group by episode "
            "having bool_or(episode_return is not null)"
        ).fetchall()
        return {int(episode): int(length) for episode, length in rows}

    def tabular(self) -> Array | None:
        """(N,) the paper's tabular estimate; None where observations are not discrete."""
        records = self.snapshot.records
        if not isinstance(records.obs, Tensor) or records.obs.is_floating_point():
            return None
        lengths = self.lengths()
        last = {int(e): int(s) for e, s in zip(self.episode, self.episode_step, strict=True)}
        complete = np.array([lengths.get(e, 0) == last[e] + 1 for e in self.episode.tolist()])
        reward = column_as_floats(self.table, "reward")
        returns = observed_returns(reward, self.episode, self.episode_step, complete, self.gamma)
        return tabular_advantages(self._bytes(records.obs), self._bytes(records.actions), returns)

    def units(self) -> tuple[str, Array]:
        """What the bootstrap resamples, and its number for each record (N,)."""
        records = self.snapshot.records
        if not isinstance(records.obs, Tensor) or records.obs.is_floating_point():
            return "episode", self.episode
        pairs = list(zip(self._bytes(records.obs), self._bytes(records.actions), strict=True))
        numbers = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
        return "distinct (s, a)", np.array([numbers[pair] for pair in pairs])

    def actions(self) -> Array | None:
        """(N,) discrete actions as numbers; None for others."""
        actions = self.snapshot.records.actions
        if not isinstance(actions, Tensor) or actions.is_floating_point() or actions.dim() > 1:
            return None
        return actions.cpu().numpy()

    def cell(self, name: str, row: int) -> Any:
        return self.table[name][row].as_py()

    def _integers(self, name: str) -> Ints:
        return np.asarray(self.table[name].to_numpy(zero_copy_only=False), np.int64)

    @staticmethod
    def _bytes(rows: Rows) -> list[bytes]:
        assert isinstance(rows, Tensor)
        return [row.tobytes() for row in rows.cpu().numpy()]

    def _read_prefixes(self) -> dict[int, tuple[str, Array]]:
        """For the episodes whose start is stored: it, and the actions of all their stored steps, from the first."""
        if "episode_start" not in self.table.column_names:
            return {}
        rows = self.run.sql(
            "select episode, episode_step, episode_start, action from records where episode in "
            f"(select episode from records where round = {self.round}) and round <= {self.round} "
            "order by episode, episode_step"
        ).fetchall()
        by_episode: dict[int, list[tuple[Any, ...]]] = {}
        for row in rows:
            by_episode.setdefault(int(row[0]), []).append(row)
        prefixes = {}
        for episode, steps in by_episode.items():
            start = steps[0][2]
            if start is not None and [row[1] for row in steps] == list(range(len(steps))):
                prefixes[episode] = (str(start), self.actor.executable(np.array([row[3] for row in steps], np.float32)))
        return prefixes


def _spaces(env: gym.Env[Any, Any]) -> tuple[gym.Space[Any], gym.Space[Any]]:
    env.close()
    return env.observation_space, env.action_space
