"""`Recorder`: a training loop of one's own writes a run folder, as the hosts do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from rollsight.errors import RollsightError
from rollsight.policy import Policy
from rollsight.records import Records, TensorLike, as_tensor
from rollsight.runs import summary as numbers
from rollsight.runs.columns import as_numpy, of_round
from rollsight.runs.described import described
from rollsight.runs.episodes import EpisodeTracker, RoundEpisodes, after_resets
from rollsight.runs.going_on import resumed
from rollsight.runs.layout import is_run
from rollsight.runs.metadata import jsonable
from rollsight.runs.writer import Column, create
from rollsight.scoring import Scores, TrustLine
from rollsight.selection import Selection
from rollsight.snapshot import Snapshot
from rollsight.update import UpdateRule
from rollsight.watching import Watch

HOST = "own"  # what `run.json` calls the host


class Recorder:
    """Appends the rounds of a training loop of your own to a new run folder.

        recorder = rs.runs.Recorder("runs/x", env="CartPole-v1", algo="ppo", seed=1)
        ...
        recorder.round(records, scores, selection)  # once a round, after its update
        recorder.close()

    The constructor complains of what is wrong with the folder or the metadata. From then on nothing here stops
    training: what fails is a warning, once per kind, and a null in the round's summary, whose `warnings` say why.

    :param path: the run folder, which must not be there
    :param env: the environment's name; or a gymnasium environment or vector environment, whose name, keywords, time
        limit, number and wrappers are noted; None where there is none
    :param overwrite: replace a run that is there
    :param resume: go on with the run that is there after its last complete round, or make one where there is none. The
        environments are taken to begin new episodes
    :param after: with `resume`, the round of the checkpoint that training goes on from; later rounds are replaced
    :param metadata: entries of `run.json`: `algo`, `seed`, `arm`, `settings={"gamma": 0.99, ...}` and any others
    """

    def __init__(
        self,
        path: str | Path,
        env: Any = None,
        *,
        overwrite: bool = False,
        resume: bool = False,
        after: int | None = None,
        **metadata: Any,
    ) -> None:
        if overwrite and resume:
            raise RollsightError("overwrite replaces the run that resume goes on with: give one of them")
        if after is not None and not resume:
            raise RollsightError(f"after={after} is the round to resume after: add resume=True")
        metadata = {"host": HOST, **described(env), **metadata}
        self._timesteps, self._tracker = 0, EpisodeTracker()
        if resume and is_run(path):
            found = resumed(Path(path), after, metadata)
            self._writer, self._timesteps = found.writer, found.timesteps
            self._tracker = EpisodeTracker(found.first_episode)
        elif after:
            raise RollsightError(f"there is no run at {path} that could be resumed after round {after}")
        else:
            self._writer = create(path, metadata, overwrite=overwrite)
        self._number = self._writer.last_round + 1
        self._evaluated: dict[str, Any] = {}  # numbers for the summary of the round in flight
        self._ended, self._offset = np.zeros(0, np.bool_), np.zeros(0, np.int64)
        self._watch = Watch()
        self._watch.begin(self._number)

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._writer.path

    @property
    def last_round(self) -> int:
        """The last round that was recorded, counted from 1; 0 before the first. A resumed loop goes on after it."""
        return self._number - 1

    def round(
        self,
        records: Records,
        scores: Scores | Mapping[str, Scores] | None = None,
        selection: Selection | None = None,
        episodes: TensorLike | None = None,
        summary: Mapping[str, Any] | None = None,
        *,
        columns: Mapping[str, Column] | None = None,
        trust: TrustLine | None = None,
    ) -> None:
        """Write a round: every record, and a summary of them. Call it once a round, after its update.

        :param records: N steps or sequences. Their `ids` are written; with `env` and `step`, each counted from 0, the
            steps of several environments are told apart
        :param scores: of `score_records`; several by the name of their target, of which the first decided the selection
        :param selection: what a rule made of the scores; None where every valid record was trained on
        :param episodes: (N,) booleans, whether a step is the last of its episode. With `rewards` in the records,
            returns and lengths of episodes are then followed from round to round. An invalid step behind an episode's
            last one is taken for one that only resets
        :param summary: further numbers of the round, such as `approx_kl`, `episodes_truncated` or `time_train`
        :param columns: further columns of N entries, such as `entropy`, `prompt`, `completion` or `episode_start`
        :param trust: of `trust_line`
        """
        clock, attempt = numbers.Clock(time.perf_counter()), self._watch.attempt
        named = {} if scores is None else {scores.target: scores} if isinstance(scores, Scores) else scores
        more = {name: column for name, column in (columns or {}).items() if attempt(name, _fits, name, column, records)}
        found: dict[str, Any] = {"records": len(records), "scored": False}
        if episodes is not None and (followed := attempt("episodes", self._follow, records, episodes)) is not None:
            more, found = {**followed[0], **more}, {**found, **followed[1]}
        attempt("records in the run folder", self._write_records, records, named, selection, more)
        clock.lap("time_write")
        leading = next(iter(named.values()), None)
        found |= attempt("numbers of the round", self._numbers, records, leading, selection, trust, more) or {}
        found |= self._evaluated | clock.laps | dict(summary or {})
        found["warnings"] = self._watch.said
        attempt("round in the run folder", self._write_round, found)
        self._number += 1
        self._evaluated = {}
        self._watch.begin(self._number)

    def evaluation(
        self, returns: Column, lengths: Column, *, round: int | None = None, columns: Mapping[str, Column] | None = None
    ) -> None:
        """Write evaluation episodes of the policy that the round's update left behind. Call it before `round`, whose
        summary gets `evaluation_return`, their mean.

        :param returns: (E,) total reward of each episode
        :param lengths: (E,) its steps; of completions their tokens
        :param round: the round after which they were made, by default the present one; 0: before training
        :param columns: further columns of E entries, such as `prompt` and `completion`
        """
        number = self._number if round is None else round

        def write() -> None:
            more = {name: _plain(column) for name, column in (columns or {}).items()}
            self._writer.write_evaluation(number, _plain(returns), _plain(lengths), more)
            if number == self._number:
                self._evaluated = {"evaluation_return": float(np.mean(_plain(returns)))}

        self._watch.attempt("evaluation", write)

    def snapshot(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        records: Records,
        rule: UpdateRule,
        selection: Selection | None = None,
    ) -> None:
        """Freeze the round for replay. Call it just before the round's update.

        The update must be as `rule` says: minibatches of `numpy.random.permutation` over the rows that stay, and the
        loss of Stable-Baselines3's PPO or A2C. A policy of your own is kept as a pickle.
        """
        weights = None if selection is None else selection.weights

        def take() -> None:
            taken = Snapshot.take(self._number, policy, optimizer, records, rule, weights)
            self._writer.write_snapshot(self._number, taken.save)

        self._watch.attempt("snapshot", take)

    def close(self) -> None:
        """Let another writer in. Closing twice is harmless."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write_records(
        self, records: Records, scores: Mapping[str, Scores], selection: Selection | None, more: Mapping[str, Any]
    ) -> None:
        if isinstance(records.obs, Tensor):
            obs = {"obs": records.obs}
        else:
            obs = {f"obs.{name}": column for name, column in records.obs.items()}
        steps = records.log_probs.dim() == 1
        given = {name: _plain(column) for name, column in more.items()}
        if not steps:  # their observations are tokens: the completions are in `token_ids`
            numbered = {} if "episode" in records.ids else {"episode": np.arange(len(records))}
            given = {**numbered, **_rewards(records), **given}
        written = of_round(self._number, records, obs if steps else {}, scores, selection, given)
        self._writer.write_records(self._number, written)

    def _numbers(
        self,
        records: Records,
        leading: Scores | None,
        selection: Selection | None,
        trust: TrustLine | None,
        columns: Mapping[str, Any],
    ) -> dict[str, Any]:
        found = numbers.of_records(records)
        found |= numbers.of_scoring(records.valid_rows, leading, selection, trust, "repack")
        if records.log_probs.dim() == 1:
            self._timesteps += len(records)
            found["timesteps"] = self._timesteps
        else:
            found["length_mean"] = float(records.valid.sum(1).double().mean())
            if (reward := _rewards(records).get("reward")) is not None:
                found |= {"reward_mean": float(reward.mean()), "reward_std": float(reward.std())}
        if (entropy := columns.get("entropy")) is not None:
            found["entropy_mean"] = numbers.mean_of(as_tensor(entropy).numpy(force=True), as_numpy(records.valid_rows))
        return found

    def _write_round(self, found: Mapping[str, Any]) -> None:
        self._writer.write_round(self._number, jsonable(found))

    def _follow(self, records: Records, episodes: TensorLike) -> tuple[dict[str, Any], dict[str, Any]]:
        """Columns (N,) of the round's episodes, and numbers of those that ended."""
        given = as_tensor(episodes).bool().cpu().numpy()
        if given.shape != (len(records),):
            raise RollsightError(f"episodes has shape {given.shape}: give a boolean for each of {len(records)} records")
        if records.rewards is None or records.rewards.dim() != 1:
            raise RollsightError("the records are not steps with rewards, which returns are made of: give `rewards`")
        step, env = _places(records)
        shape = int(step.max()) + 1, int(env.max()) + 1

        def grid(column: Any) -> Any:
            cells = np.empty(shape, column.dtype)
            cells[step, env] = column
            return cells

        ends, valid = grid(given), grid(as_numpy(records.valid_rows))
        if len(self._ended) != shape[1]:
            self._tracker.begin(shape[1])
            self._ended, self._offset = np.ones(shape[1], np.bool_), np.zeros(shape[1], np.int64)
        begins = np.concatenate([self._ended[None], ends[:-1]])
        rewards = grid(as_numpy(records.rewards)).astype(np.float64)
        found = self._tracker.of_round(begins, ends[-1], rewards, (), 0)
        offset = after_resets(begins, valid, self._offset)
        self._ended, self._offset = ends[-1], offset[-1]
        found = replace(found, episode_step=found.episode_step - offset)
        return _columns(found, records), _of_ended(found)


def _plain(column: Any) -> Any:
    return as_numpy(column) if isinstance(column, Tensor) else column


def _fits(name: str, column: Column, records: Records) -> bool:
    if len(column) != len(records):
        raise RollsightError(f"the column {name!r} has {len(column)} entries for {len(records)} records")
    return True


def _columns(found: RoundEpisodes, records: Records) -> dict[str, Any]:
    step, env = _places(records)
    returns = found.episode_return[step, env].tolist()
    columns: dict[str, Any] = {
        "env": env,
        "step": step,
        "episode": found.episode[step, env],
        "episode_step": found.episode_step[step, env],
        "episode_return": [None if np.isnan(one) else one for one in returns],
    }
    return {name: column for name, column in columns.items() if name not in records.ids}


def _of_ended(found: RoundEpisodes) -> dict[str, Any]:
    """Without how episodes ended, which is not known here."""
    return {name: value for name, value in found.numbers().items() if not name.startswith("episodes_")}


def _places(records: Records) -> tuple[Any, Any]:
    """(N,) the step and the environment of each record: by its ids, or one environment's steps in order."""
    n = len(records)
    env = as_numpy(records.ids["env"]) if "env" in records.ids else np.zeros(n, np.int64)
    if "step" in records.ids:
        step = as_numpy(records.ids["step"])
    elif "env" in records.ids:
        raise RollsightError("the records have an id `env` and none of `step`: give both, each counted from 0")
    else:
        step = np.arange(n)
    steps, envs = int(step.max()) + 1, int(env.max()) + 1
    if min(step.min(), env.min()) < 0 or steps * envs != n or len(np.unique(step * envs + env)) != n:
        raise RollsightError(
            f"the {n} records are not {steps} steps of each of {envs} environments: give ids `env` and `step`, each "
            "counted from 0"
        )
    return step, env


def _rewards(records: Records) -> dict[str, Any]:
    """Of sequences (N,): their rewards, summed over tokens."""
    if records.rewards is None:
        return {}
    rewards = records.rewards if records.rewards.dim() == 1 else (records.rewards * records.valid).sum(1)
    return {"reward": as_numpy(rewards)}
