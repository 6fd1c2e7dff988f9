"""What the Stable-Baselines3 adapter records of each step: identities, rewards, returns, and how episodes started."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from sb3_zoo import Toy, make_model
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from rollsight import runs
from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.environments.episode_start import EpisodeStart

Row = dict[str, Any]


class Diary(gym.Wrapper[Any, Any, Any, Any]):
    """Notes every step in the order in which it happens."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.steps: list[Row] = []
        self.episode = -1

    def reset(self, **keywords: Any) -> Any:
        self.episode, self.age = self.episode + 1, 0
        self.obs, info = self.env.reset(**keywords)
        return self.obs, info

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        done = terminated or truncated
        noted = {"episode": self.episode, "episode_step": self.age, "reward": float(reward), "done": done}
        self.steps.append({**noted, "obs": self.obs, "action": action, "truncated": truncated})
        self.obs, self.age = obs, self.age + 1
        return obs, reward, terminated, truncated, info


def diaries(count: int, monitor_inside: bool = False) -> tuple[list[Diary], DummyVecEnv]:
    """Toys behind a time limit of 9 steps."""
    made: list[Diary] = []

    def make() -> Any:
        env: Any = gym.wrappers.TimeLimit(Toy(), 9)
        made.append(Diary(Monitor(env) if monitor_inside else env))
        return EpisodeStart(made[-1]) if monitor_inside else Monitor(EpisodeStart(made[-1]))

    vectorised = DummyVecEnv([make] * count)
    return made, vectorised


def recorded(run: Path) -> list[Row]:
    """All records of a run folder, by round, environment and step."""
    opened = runs.open(run)
    return [row for round in opened.rounds for row in opened.records(round).to_pylist()]


def check(rows: list[Row], noted: list[Diary], steps: int, since: int = 0) -> None:
    """Compare a run folder with the diaries, from their step `since` on."""
    episodes: dict[int, tuple[int, int]] = {}
    assert rows
    for row in rows:
        when = since + (row["round"] - 1) * steps + row["step"]
        diary = noted[row["env"]].steps
        entry = diary[when]
        assert row["reward"] == pytest.approx(entry["reward"], rel=1e-6)
        assert row["action"] == entry["action"]
        assert row["episode_step"] == entry["episode_step"]
        np.testing.assert_array_equal(np.float32(row["obs"]), entry["obs"])
        key = (row["env"], entry["episode"])
        assert episodes.setdefault(row["episode"], key) == key
        whole = [e for e in diary if e["episode"] == entry["episode"]]
        ended_by = next((t for t, e in enumerate(diary) if e["episode"] == entry["episode"] and e["done"]), None)
        end_of_round = since + row["round"] * steps
        if ended_by is not None and ended_by < end_of_round:
            assert row["episode_return"] == pytest.approx(sum(e["reward"] for e in whole), rel=1e-5)
        else:
            assert row["episode_return"] is None
        assert (row["episode_start"] is not None) == (entry["episode_step"] == 0)
    assert len(set(episodes.values())) == len(episodes)  # one number per episode, over rounds and environments


@pytest.mark.parametrize("monitor_inside", [False, True])
def test_identities_agree_with_a_diary(monitor_inside: bool, tmp_path: Path) -> None:
    noted, env = diaries(3, monitor_inside)
    model = make_model(env=VecNormalize(env, norm_obs=False), n_steps=7, batch_size=7)
    summaries: list[Any] = []
    model.learn(6 * 21, callback=InfluenceCallback(run=tmp_path / "run", on_round=summaries.append))
    rows = recorded(tmp_path / "run")
    assert len(rows) == 6 * 21
    check(rows, noted, 7)
    assert any(entry["truncated"] for diary in noted for entry in diary.steps)
    spanning = {row["episode"] for row in rows if row["step"] == 0 and row["episode_step"] > 0}
    assert spanning  # episodes that go on from one round to the next
    for summary in summaries:
        ended = {
            (env, entry["episode"]): sum(e["reward"] for e in diary.steps if e["episode"] == entry["episode"])
            for env, diary in enumerate(noted)
            for entry in diary.steps[(summary["round"] - 1) * 7 : summary["round"] * 7]
            if entry["done"]
        }
        assert summary["episodes"] == len(ended)
        assert summary["return_mean"] == pytest.approx(np.mean(list(ended.values())), rel=1e-5)
        assert summary["return_std"] == pytest.approx(np.std(list(ended.values())), rel=1e-5)
        lengths = [sum(e["episode"] == episode for e in noted[env].steps) for env, episode in ended]
        assert summary["episode_length_mean"] == pytest.approx(np.mean(lengths))
        lasts = [[e for e in noted[env].steps if e["episode"] == episode][-1] for env, episode in ended]
        assert summary["episodes_truncated"] == sum(e["truncated"] for e in lasts)
        assert summary["episodes_terminated"] == sum(not e["truncated"] for e in lasts)
        records = [row for row in rows if row["round"] == summary["round"]]
        value, wanted, entropy, advantage = (
            np.array([row[name] for row in records]) for name in ("value", "return", "entropy", "advantage")
        )
        assert summary["explained_variance"] == pytest.approx(1 - (wanted - value).var() / wanted.var(), abs=1e-4)
        assert summary["entropy_mean"] == pytest.approx(entropy.mean(), rel=1e-5)
        assert summary["advantage_mean"] == pytest.approx(advantage.mean(), abs=1e-5)
        assert summary["advantage_std"] == pytest.approx(advantage.std(), rel=1e-5)


def test_identities_over_resumed_learning(tmp_path: Path) -> None:
    noted, env = diaries(2)
    model = make_model(env=env, n_steps=7, batch_size=7)
    influence = InfluenceCallback(run=tmp_path / "run")
    model.learn(28, callback=influence)
    model.learn(28, callback=influence, reset_num_timesteps=False)
    rows = recorded(tmp_path / "run")
    assert [row["round"] for row in rows[::14]] == [1, 2, 3, 4]
    check(rows, noted, 7)


def test_a_new_callback_does_not_invent_what_it_has_not_seen(tmp_path: Path) -> None:
    """Learning goes on in the middle of episodes: their numbers are new, and their returns unknown."""
    noted, env = diaries(2)
    model = make_model(env=env, n_steps=7, batch_size=7)
    model.learn(28, callback=InfluenceCallback(run=tmp_path / "run"))
    numbers = {row["episode"] for row in recorded(tmp_path / "run")}
    summaries: list[Any] = []
    model.learn(
        28, callback=InfluenceCallback(run=tmp_path / "run", on_round=summaries.append), reset_num_timesteps=False
    )
    assert [diary.steps[13]["done"] for diary in noted] != [True, True]
    for env_number, diary in enumerate(noted):
        rows = [row for row in recorded(tmp_path / "run")[28:] if row["env"] == env_number]
        assert not {row["episode"] for row in rows} & numbers
        if not diary.steps[13]["done"]:
            first = [row for row in rows if row["episode"] == rows[0]["episode"]]
            assert all(row["episode_return"] is None and row["episode_start"] is None for row in first)
            assert [row["episode_step"] for row in first] == list(range(len(first)))
    assert sum(summary["episodes"] for summary in summaries) == sum(
        entry["done"] and diary.steps[13]["episode"] != entry["episode"]
        for diary in noted
        for entry in diary.steps[14:]
    )


class StopsOnce(BaseCallback):
    """Breaks off one rollout in its middle."""

    stopped = False

    def _on_step(self) -> bool:
        if self.n_calls == 10 and not self.stopped:
            self.stopped = True
            return False
        return True


def test_a_rollout_that_was_broken_off(tmp_path: Path) -> None:
    _, env = diaries(2)
    model = make_model(env=env, n_steps=7, batch_size=7)
    influence = InfluenceCallback(run=tmp_path / "run")
    model.learn(28, callback=[influence, StopsOnce()])
    model.learn(28, callback=influence, reset_num_timesteps=False)
    rows = recorded(tmp_path / "run")
    assert {row["round"] for row in rows} == {1, 2, 3}
    for env_number in range(2):
        episodes = defaultdict(set)
        for row in (row for row in rows if row["env"] == env_number):
            episodes[row["episode"]].add(row["round"] > 1)
        assert all(len(sides) == 1 for sides in episodes.values())


# How episodes started


def _restart(env: gym.Env[Any, Any], start: str) -> Any:
    how = json.loads(start)
    if "seed" in how:
        return env.reset(seed=how["seed"])[0]
    env.unwrapped.np_random.bit_generator.state = how["state"]
    return env.reset()[0]


@pytest.mark.parametrize("name", ["CartPole-v1", "FrozenLake-v1"])
@pytest.mark.parametrize("vectorise", ["dummy", "subprocess", "behind wrappers"])
def test_an_episode_can_be_started_again(name: str, vectorise: str, tmp_path: Path) -> None:
    def make() -> Any:
        return Monitor(EpisodeStart(gym.make(name)))

    def vectorised() -> Any:
        if vectorise == "subprocess":
            return SubprocVecEnv([make] * 2, start_method="fork")
        dummy = DummyVecEnv([make] * 2)
        return VecNormalize(dummy, norm_obs=False) if vectorise == "behind wrappers" else dummy

    env = vectorised()
    model = PPO(
        "MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=3, device="cpu", policy_kwargs={"net_arch": [4]}
    )
    model.learn(4 * 64, callback=InfluenceCallback(run=tmp_path / "run"))
    env.close()
    episodes: dict[int, list[Row]] = defaultdict(list)
    for row in recorded(tmp_path / "run"):
        episodes[row["episode"]].append(row)
    kinds, fresh = set(), gym.make(name)
    for rows in episodes.values():
        start = rows[0]["episode_start"]
        assert start is not None
        assert all(row["episode_start"] is None for row in rows[1:])
        kinds.add(next(iter(json.loads(start))))
        obs = _restart(fresh, start)
        for row in rows:
            np.testing.assert_array_equal(np.asarray(row["obs"], np.asarray(obs).dtype), obs)
            obs, reward, *_ = fresh.step(row["action"])
            assert reward == row["reward"]
    assert kinds == {"seed", "state"}
    assert max(len(rows) for rows in episodes.values()) > 8


def test_starts_are_known_behind_stacked_frames(tmp_path: Path) -> None:
    _, env = diaries(2)
    model = make_model(env=VecFrameStack(env, 2), n_steps=12)
    model.learn(48, callback=InfluenceCallback(run=tmp_path / "run"))
    for row in recorded(tmp_path / "run"):
        assert (row["episode_start"] is not None) == (row["episode_step"] == 0)


# Columns


@pytest.mark.parametrize(
    ("settings", "columns"),
    [
        ({}, {"obs": list, "action": int}),
        ({"obs": "discrete", "action": "box"}, {"obs": int, "action": list}),
        ({"obs": "dict", "n_envs": 3}, {"obs.kind": int, "obs.obs": list, "action": int}),
        ({"algo": "MaskablePPO", "action": "multidiscrete"}, {"action_masks": list, "action": list}),
        ({"algo": "MaskablePPO", "obs": "dict"}, {"action_masks": list, "obs.kind": int, "obs.obs": list}),
        ({"algo": "RecurrentPPO", "n_envs": 3}, {"obs": list, "entropy": float}),
        ({"action": "box", "use_sde": True}, {"entropy": float}),
    ],
)
def test_columns_of_every_kind_of_space(settings: Row, columns: dict[str, type], tmp_path: Path) -> None:
    make_model(**settings).learn(
        48, callback=InfluenceCallback(drop=0.9, target=["return", "objective"], run=tmp_path / "run")
    )
    rows = recorded(tmp_path / "run")
    assert len(rows) == 48
    for name, kind in columns.items():
        assert all(isinstance(row[name], kind) for row in rows), (name, rows[0].get(name))
    for row in rows:
        assert row["valid"]
        assert isinstance(row["score_return"], float)
        assert isinstance(row["score_objective"], float)
    assert 0 < sum(not row["kept"] for row in rows) < 48


def test_kept_and_scores_belong_to_their_rows(tmp_path: Path) -> None:
    influence = InfluenceCallback(drop=0.9, run=tmp_path / "run")
    make_model(n_envs=3).learn(24, callback=influence)
    rows = recorded(tmp_path / "run")
    assert influence.selection is not None
    assert [row["kept"] for row in rows] == (influence.selection.weights > 0).tolist()
    np.testing.assert_array_equal(np.float32([row["score_return"] for row in rows]), influence.scores["return"].values)


def test_large_observations_are_kept_for_extremes_and_a_sample(tmp_path: Path) -> None:
    make_model(obs="image", n_steps=160, batch_size=80, n_epochs=1).learn(
        160, callback=InfluenceCallback(run=tmp_path / "run")
    )
    rows = sorted(recorded(tmp_path / "run"), key=lambda row: row["score_return"])
    shown = [row["obs"] is not None for row in rows]
    assert all(shown[:32])
    assert all(shown[-32:])
    assert 64 < sum(shown) <= 128
    assert len(rows[0]["obs"]) == 36 * 36


def test_columns_survive_rounds_with_and_without_scores_and_episodes(tmp_path: Path) -> None:
    """Empty columns of one round and full ones of the next read as one table."""
    _, env = diaries(1)
    model = make_model(env=env, n_steps=3, batch_size=3)
    model.learn(24, callback=InfluenceCallback(run=tmp_path / "run", every=2))

    def count(what: str) -> int:
        return int(runs.open(tmp_path / "run").sql(f"select count({what}) from records").fetchall()[0][0])

    assert count("*") == 24
    assert count("score_return") == 12
    assert 0 < count("episode_return") < 24
    assert 0 < count("episode_start") < 24
