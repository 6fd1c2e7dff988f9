"""Collection: one round's records, episode by episode; between the steps compiled code or NumPy, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rollsight.arrays import Array
from rollsight.gae import gae
from rollsight.records import Records
from rollsight.runs.episodes import EpisodeTracker, RoundEpisodes, after_resets
from rollsight.training.compiled import ppo
from rollsight.training.compiled.acting import Actor, executable
from rollsight.training.compiled.environments import Environments, Pool
from rollsight.training.compiled.networks import Network, Parameters
from rollsight.training.compiled.pool_rollout import Rolled, rollout_in
from rollsight.training.restoring import History


@dataclass(frozen=True, eq=False)
class Rollout:
    """One round: N = steps x environments records, env-major as the SB3 adapter has them (row = env * T + step).

    records: the round's buffer.
    episodes: columns (T, E).
    broken: whether numbers that training needs are not finite; those rows are not valid.
    """

    records: Records
    episodes: RoundEpisodes
    broken: bool = False


@dataclass(frozen=True, eq=False)
class _Steps:
    """What happened, each (T, E, ...) unless another shape is given.

    obs: before each step.
    actions: taken.
    rewards: received.
    ends: whether the episode ended with the step.
    cut: whether a time limit ended it.
    begins: the first row that belongs to an episode.
    valid: False where the step only reset the environment.
    finals: (step, environment, last observation) of those that were reset at once.
    starts: (step, environment, how the episode started).
    last: (E, ...) the observation after the last step.
    """

    obs: Array
    actions: Array
    rewards: Array
    ends: Array
    cut: Array
    begins: Array
    valid: Array
    finals: list[tuple[int, int, Array]]
    starts: list[tuple[int, int, Any]]
    last: Array


class Collector:
    """Steps the environments from round to round; an episode may span several."""

    def __init__(self, environments: Environments, network: Network, gamma: float, gae_lambda: float) -> None:
        self._environments, self._network = environments, network
        self._gamma, self._gae_lambda = gamma, gae_lambda
        self._tracker = EpisodeTracker()
        self._tracker.begin(environments.count)
        begun = environments.reset()
        self._rollout = rollout_in(environments, network) if isinstance(environments, Pool) else None
        self._obs = begun.obs
        self._starts: list[tuple[int, int, Any]] = [(0, i, how) for i, how in begun.starts]
        self._ended = np.ones(environments.count, dtype=bool)
        self._resetting = np.zeros(environments.count, dtype=bool)
        self._offset = np.zeros(environments.count, dtype=np.int64)

    def collect(self, parameters: Parameters, steps: int, rng: np.random.Generator, round: int) -> Rollout:
        """`steps` steps in every environment. rng: of the policy's actions; round: the records' identity."""
        actor = Actor(self._network, parameters, self._obs.shape[1:])
        done = self._step(actor, parameters, steps, rng)
        episodes = self._episodes(done)
        ids = {"round": np.full(done.ends.shape, round), "episode": episodes.episode}
        columns = self._evaluate(done, parameters)
        values = columns["value"]
        last_values = actor.values(done.last)
        rewards = done.rewards.copy()
        if self._environments.resets_next_step:  # then the next row shows the last observation
            following = np.concatenate([values[1:], last_values[None]])
            rewards += np.where(done.cut, self._gamma * following, 0.0)
        elif done.finals:
            final_values = actor.values(np.stack([obs for _, _, obs in done.finals]))
            for (t, env, _), value in zip(done.finals, final_values, strict=True):
                rewards[t, env] += self._gamma * float(value)
        # A step that only resets counts as its episode's first here, so that the columns are GAE row by row; being
        # invalid, it is neither trained on nor scored.
        advantages, returns = gae(rewards, values, done.ends, last_values, self._gamma, self._gae_lambda)
        finite: Array = np.isfinite(np.stack([columns["log_prob"], values, advantages, returns])).all(axis=0)
        grid = np.indices(done.ends.shape)
        records = Records(
            torch.from_numpy(flat(done.obs)),
            self._recorded(done.actions),
            torch.from_numpy(flat(columns["log_prob"])),
            torch.from_numpy(flat(advantages)),
            returns=torch.from_numpy(flat(returns)),
            values=torch.from_numpy(flat(values)),
            rewards=torch.from_numpy(flat(rewards.astype(np.float32))),
            ids={name: torch.from_numpy(flat(c)) for name, c in {"env": grid[1], "step": grid[0], **ids}.items()},
            valid=torch.from_numpy(flat(done.valid & finite)),
        )
        return Rollout(records, episodes, broken=not bool(finite[done.valid].all()))

    def state(self) -> dict[str, Any]:
        """Where collection stands between two rounds, as tensors and plain values."""
        return {
            "obs": torch.from_numpy(np.array(self._obs)),
            "begins": self._ended.tolist(),
            "resetting": self._resetting.tolist(),
            "offset": self._offset.tolist(),
            "starting": [list(start) for start in self._starts],
            "starts": self._environments.starts(),
            "tracker": self._tracker.state(),
        }

    def restore(self, state: Mapping[str, Any], history: History | None) -> bool:
        """Go on from there with new environments, which play the history again; whether that brought them to where they
        were. If not, or without a history, only the number of the next episode is taken over."""
        shown = None if history is None else self._environments.replay(history)
        if shown is None or not np.array_equal(shown, state["obs"].numpy(), equal_nan=True):
            self._tracker = EpisodeTracker(state["tracker"]["next"])
            self._tracker.begin(self._environments.count)
            return False
        self._obs = state["obs"].numpy().astype(self._obs.dtype)
        self._ended, self._resetting = np.array(state["begins"]), np.array(state["resetting"])
        self._offset = np.array(state["offset"], dtype=np.int64)
        self._starts = [(t, env, how) for t, env, how in state["starting"]]
        self._tracker.restore(state["tracker"])
        return True

    def _step(self, actor: Actor, parameters: Parameters, steps: int, rng: np.random.Generator) -> _Steps:
        environments = self._environments
        noise = actor.noise(rng, steps, environments.count)
        if self._rollout is None:
            rolled, finals = self._roll(actor, noise)
        else:
            rolled = Rolled(*map(np.array, self._rollout(parameters, self._obs, noise)))
            ended_at_once = rolled.truncated & ~rolled.terminated & (not environments.resets_next_step)
            finals = [(t, env, rolled.after[t, env]) for t, env in np.argwhere(ended_at_once).tolist()]
        ends = rolled.terminated | rolled.truncated
        begins = np.concatenate([self._ended[None], ends[:-1]])
        valid = np.ones_like(ends)
        if environments.resets_next_step:
            valid = ~np.concatenate([self._resetting[None], ends[:-1]])
            self._resetting = ends[-1]
        starts, self._starts = self._starts, [(t - steps, env, how) for t, env, how in self._starts if t >= steps]
        self._ended, self._obs = ends[-1], rolled.last.astype(self._obs.dtype)
        cut = rolled.truncated & ~rolled.terminated
        obs, rewards = rolled.obs.astype(self._obs.dtype, copy=False), rolled.rewards.astype(float)
        return _Steps(obs, rolled.actions, rewards, ends, cut, begins, valid, finals, starts, self._obs)

    def _roll(self, actor: Actor, noise: Array) -> tuple[Rolled, list[tuple[int, int, Array]]]:
        """Step after step, in plain Python; and the last observations of episodes that were cut off (`_Steps`)."""
        environments, (steps, count), seen = self._environments, noise.shape[:2], self._obs
        obs = np.empty((steps, *seen.shape), seen.dtype)
        example = actor.act(seen, noise[0])
        actions = np.empty((steps, *example.shape), example.dtype)
        rewards = np.empty((steps, count))
        terminated, truncated = np.empty((steps, count), dtype=bool), np.empty((steps, count), dtype=bool)
        finals = list[tuple[int, int, Array]]()
        for t in range(steps):
            obs[t] = seen
            actions[t] = chosen = actor.act(seen, noise[t])
            outcome = environments.step(executable(chosen, environments.action_space))
            seen = outcome.obs
            rewards[t], terminated[t], truncated[t] = outcome.rewards, outcome.terminated, outcome.truncated
            if outcome.finals:
                finals += [(t, env, last) for env, last in outcome.finals]
            if outcome.starts:
                self._starts += [(t + 1, env, how) for env, how in outcome.starts]
        return Rolled(obs, actions, rewards, terminated, truncated, None, seen), finals

    def _episodes(self, done: _Steps) -> RoundEpisodes:
        """The tracker's columns; a step that only resets is its episode's step -1."""
        episodes = self._tracker.of_round(done.begins, done.ends[-1], done.rewards, done.starts, int(done.cut.sum()))
        offset = after_resets(done.begins, done.valid, self._offset)
        self._offset = offset[-1].astype(np.int64)
        return replace(episodes, episode_step=episodes.episode_step - offset)

    def _evaluate(self, done: _Steps, parameters: Parameters) -> dict[str, Array]:
        """log_prob, entropy and value, each (T, E), by the function that training uses."""
        steps, count = done.ends.shape
        obs, actions = (column.reshape(steps * count, *column.shape[2:]) for column in (done.obs, done.actions))
        evaluation = ppo.evaluation(self._network, parameters, obs, actions)
        return {name: np.array(column).reshape(steps, count) for name, column in evaluation._asdict().items()}

    def _recorded(self, actions: Array) -> torch.Tensor:
        """As Stable-Baselines3 records them: one discrete action as an integer, all others as floats (N, D)."""
        column = flat(actions)
        return torch.from_numpy(column.astype(np.int64 if column.ndim == 1 else np.float32))


def flat(column: Array) -> Array:
    """(T, E, ...) as (N, ...), env-major."""
    return np.ascontiguousarray(column.swapaxes(0, 1)).reshape(-1, *column.shape[2:])
