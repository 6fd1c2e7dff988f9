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
from rollsight.runs.episodes import EpisodeTracker, RoundEpisodes, after_resets
from rollsight.runs.metadata import jsonable
from rollsight.runs.writer import Column, create
from rollsight.scoring import Scores, TrustLine
from rollsight.selection import Selection
from rollsight.snapshot import Snapshot
from rollsight.update import UpdateRule
from rollsight.watching import Watch

HOST = "own"  # what `run.json` calls the host
# They note or draw, and change nothing that a policy meets.
_HARMLESS = {"RecordEpisodeStatistics", "RecordVideo", "RenderCollection", "HumanRendering", "PassiveEnvChecker"}


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
    :param metadata: entries of `run.json`: `algo`, `seed`, `arm`, `settings={"gamma": 0.99, ...}` and any others
    """

    def __init__(self, path: str | Path, env: Any = None, *, overwrite: bool = False, **metadata: Any) -> None:
        self._writer = create(path, {"host": HOST, **_described(env), **metadata}, overwrite=overwrite)
        self._number, self._timesteps = 1, 0
        self._tracker: EpisodeTracker | None = None
        self._ended, self._offset = np.zeros(0, np.bool_), np.zeros(0, np.int64)
        self._watch = Watch()
        self._watch.begin(self._number)

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._writer.path

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
        found |= clock.laps | dict(summary or {})
        found["warnings"] = self._watch.said
        attempt("round in the run folder", self._write_round, found)
        self._number += 1
        self._watch.begin(self._number)

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
        given = {name: as_numpy(column) if isinstance(column, Tensor) else column for name, column in more.items()}
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
        if self._tracker is None or len(self._ended) != shape[1]:
            self._tracker = EpisodeTracker() if self._tracker is None else self._tracker
            self._tracker.begin(shape[1])
            self._ended, self._offset = np.ones(shape[1], np.bool_), np.zeros(shape[1], np.int64)
        begins = np.concatenate([self._ended[None], ends[:-1]])
        rewards = grid(as_numpy(records.rewards)).astype(np.float64)
        found = self._tracker.of_round(begins, ends[-1], rewards, (), 0)
        offset = after_resets(begins, valid, self._offset)
        self._ended, self._offset = ends[-1], offset[-1]
        found = replace(found, episode_step=found.episode_step - offset)
        return _columns(found, records), _of_ended(found)


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


def _described(env: Any) -> dict[str, Any]:
    """How the environment is called and made, as far as it says."""
    if env is None or isinstance(env, str):
        return {} if env is None else {"env": env}
    wrappers, spec, layer = [], getattr(env, "spec", None), env
    while spec is None and layer is not None and hasattr(layer, "num_envs"):  # a vector environment
        if (inner := getattr(layer, "env", None)) is not None:
            wrappers.append(type(layer).__name__)
        elif hasattr(layer, "get_attr"):
            spec = layer.get_attr("spec")[0]
        layer = inner
    if spec is None:
        raise RollsightError(f"env={type(env).__name__} does not say which environment it is: give its name")
    described: dict[str, Any] = {
        "env": spec.id,
        "env_kwargs": dict(spec.kwargs),
        "max_episode_steps": spec.max_episode_steps,
        "env_wrappers": [name for name in wrappers if name not in _HARMLESS]
        + [one.name for one in reversed(spec.additional_wrappers) if one.name not in _HARMLESS],
    }
    return described | ({"n_envs": env.num_envs} if hasattr(env, "num_envs") else {})
