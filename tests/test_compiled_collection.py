"""What the compiled engine collects: whole episodes, Stable-Baselines3's advantages, and no row that only resets."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_zoo import make_model
from stable_baselines3.common.buffers import RolloutBuffer

pytest.importorskip("jax", reason="the compiled engine needs JAX (pip install 'rollsight[fast]')")

from rollsight import RollsightError
from rollsight.gae import gae
from rollsight.training.compiled import collect
from rollsight.training.compiled.acting import Actor, executable
from rollsight.training.compiled.collect import Collector, Rollout
from rollsight.training.compiled.conversion import parameters_of
from rollsight.training.compiled.environments import Outcome, make
from rollsight.training.compiled.evaluation import play
from rollsight.training.compiled.networks import network_of


class Counting:
    """Observations count steps since the reset; reward 1; environment i ends after i + 3 steps, odd ones by a time
    limit. With `resets_next_step` as EnvPool resets, without as Stable-Baselines3 does."""

    count = 2
    action_space = gym.spaces.Discrete(3)

    def __init__(self, resets_next_step: bool) -> None:
        self.resets_next_step = resets_next_step
        self._steps = np.zeros(2)
        self._over = np.zeros(2, dtype=bool)

    def _see(self) -> Any:
        return np.stack([self._steps, np.arange(2), np.ones(2)], axis=1).astype(np.float32) / 10

    def reset(self) -> Outcome:
        return Outcome(self._see(), None, None, None)

    def step(self, actions: Any, only: Any = None) -> Outcome:
        rows = np.arange(2) if only is None else only
        assert actions.shape == rows.shape
        resetting = self._over[rows]
        self._steps[rows] = np.where(resetting, 0, self._steps[rows] + 1)
        over = self._steps[rows] == rows + 3
        rewards, cut, finals = np.where(resetting, 0.0, 1.0), over & (rows == 1), []
        if self.resets_next_step:
            self._over[rows] = over
        else:
            finals = [(i, self._see()[rows[i]]) for i in np.flatnonzero(cut)]
            self._steps[rows[over]] = 0
        return Outcome(self._see()[rows], rewards, over & ~cut, cut, finals)

    def close(self) -> None:
        pass


def rollouts(resets_next_step: bool, steps: int, rounds: int = 2) -> tuple[list[Rollout], Any]:
    policy = make_model().policy
    parameters = parameters_of(policy)
    collector = Collector(Counting(resets_next_step), network_of(policy), 0.9, 0.8)
    return [collector.collect(parameters, steps, np.random.default_rng(k), k) for k in range(1, rounds + 1)], policy


def host_advantages(rewards: Any, values: Any, starts: Any, last_values: Any, dones: Any) -> Any:
    """By Stable-Baselines3's own buffer; all (T, E)."""
    steps, envs = rewards.shape
    space = gym.spaces.Box(-1, 1, (1,))
    buffer = RolloutBuffer(steps, space, space, "cpu", 0.8, 0.9, envs)
    buffer.rewards[:], buffer.values[:], buffer.episode_starts[:] = rewards, values, starts
    buffer.compute_returns_and_advantage(torch.from_numpy(last_values), dones)
    return buffer.advantages, buffer.returns


def test_advantages_are_the_hosts() -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 300, 3)).astype(np.float32)
    ends, last = rng.random((300, 3)) < 0.05, rng.normal(size=3).astype(np.float32)
    starts = np.concatenate([np.ones((1, 3)), ends[:-1]])
    mine = gae(rewards, values, ends, last, 0.9, 0.8)
    for one, other in zip(mine, host_advantages(rewards, values, starts, last, ends[-1]), strict=True):
        assert one.dtype == np.float32
        assert np.abs(one - other).max() < 1e-5


def test_time_limits_are_bootstrapped_as_the_host_does() -> None:
    (rollout, _), policy = rollouts(resets_next_step=False, steps=12)
    records = rollout.records
    with torch.no_grad():
        values = policy.predict_values(records.obs).flatten().numpy().reshape(2, 12).T
        final = policy.predict_values(torch.tensor([[0.4, 0.1, 0.1]])).item()
    rewards, starts = np.ones((12, 2)), np.zeros((12, 2))
    rewards[3::4, 1] += 0.9 * final
    starts[::3, 0] = starts[::4, 1] = 1
    advantages, returns = host_advantages(rewards, values, starts, np.zeros(2, np.float32), np.ones(2, dtype=bool))
    assert np.allclose(records.advantages.reshape(2, 12).T, advantages, atol=1e-5)
    assert np.allclose(records.returns.reshape(2, 12).T, returns, atol=1e-5)  # type: ignore[union-attr]
    assert bool(records.valid.all())


def test_rows_that_only_reset_are_no_records_and_change_no_other() -> None:
    """The same episodes with both ways to reset: valid rows agree, whatever the round's end cuts through."""
    columns = []
    for resets_next_step in (False, True):
        many, _ = rollouts(resets_next_step, steps=19, rounds=3)
        episodes: dict[tuple[int, int], list[tuple[int, float, float]]] = {}
        seen: dict[int, int] = {}
        for rollout in many:
            records, step = rollout.records, rollout.episodes.episode_step.T.ravel()
            for i in torch.argsort(records.ids["env"] * 100 + records.ids["step"]).tolist():
                env = int(records.ids["env"][i])
                if not records.valid[i]:
                    assert step[i] == -1
                    continue
                number = seen[env] = seen.get(env, -1) + int(step[i] == 0)
                assert float(records.obs[i, 0]) == pytest.approx(step[i] / 10)
                row = (int(records.ids["round"][i]), float(records.values[i]), float(records.returns[i]))  # type: ignore[index]
                episodes.setdefault((env, number), []).append(row)
        columns.append((episodes, [float(r) for x in many for r in x.episodes.finished_returns]))
    (at_once, returns), (later, later_returns) = columns
    assert set(later_returns) == set(returns) == {3.0, 4.0}
    assert sum(not bool(v) for x in rollouts(True, 19, 3)[0] for v in x.records.valid) == len(later_returns)
    compared = 0
    for key, rows in later.items():
        assert [row[1] for row in rows] == pytest.approx([row[1] for row in at_once[key]][: len(rows)], abs=1e-6)
        # Where a round ends inside an episode, the next value stands for the rest of it.
        if len(rows) == len(at_once[key]) == 3 + key[0] and all(
            len({r[0] for r in e}) == 1 for e in (rows, at_once[key])
        ):
            assert [row[2] for row in rows] == pytest.approx([row[2] for row in at_once[key]], abs=1e-5)
            compared += 1
    assert compared > 10


def test_an_episode_over_two_rounds_is_counted_once() -> None:
    for resets_next_step in (False, True):
        many, _ = rollouts(resets_next_step, steps=4, rounds=9)
        numbers = np.concatenate([r.episodes.episode[:, 1][r.records.valid.numpy().reshape(2, 4)[1]] for r in many])
        _, lengths = np.unique(numbers, return_counts=True)
        assert lengths[:-1].tolist() == [4] * (len(lengths) - 1)
        finished = np.concatenate([r.episodes.finished_returns for r in many])
        assert (finished == 4).sum() == (36 // 4 if not resets_next_step else 36 // 5)


@pytest.mark.parametrize("resets_next_step", [True, False])
@pytest.mark.parametrize(("episodes", "of_three", "of_four"), [(1, 1, 0), (2, 1, 1), (3, 2, 1), (6, 3, 3), (7, 4, 3)])
def test_an_evaluation_counts_every_episode_that_it_begins(
    resets_next_step: bool, episodes: int, of_three: int, of_four: int
) -> None:
    policy, environments = make_model().policy, Counting(resets_next_step)
    actor = Actor(network_of(policy), parameters_of(policy), (3,))
    returns, lengths = play(actor, environments, episodes, np.random.default_rng(0))
    assert sorted(lengths) == [3] * of_three + [4] * of_four
    assert returns == lengths


@pytest.mark.parametrize("settings", [{}, {"action": "multidiscrete"}, {"action": "box"}, {"obs": "discrete"}])
def test_actions_follow_the_policys_distribution(settings: dict[str, Any]) -> None:
    policy = make_model(**settings).policy
    actor = Actor(network_of(policy), parameters_of(policy), (3,))
    obs = np.full((20000, 3), 0.3, np.float32) if "obs" not in settings else np.full((20000, 1), 2)
    actions = actor.act(obs, actor.noise(np.random.default_rng(0), 20000))
    with torch.no_grad():
        distribution = policy.get_distribution(torch.from_numpy(obs[:1])).distribution
    if settings.get("action") == "box":
        assert np.allclose(actions.mean(0), distribution.mean[0], atol=0.03)
        assert np.allclose(actions.std(0), distribution.stddev[0], rtol=0.03)
        clipped = executable(actions, gym.spaces.Box(-1, 1, (2,)))
        assert clipped.shape == (20000, 2)
        assert clipped.max() == 1
        return
    parts = distribution if isinstance(distribution, list) else [distribution]
    for column, part in zip(actions.reshape(20000, -1).T, parts, strict=True):
        shares = np.bincount(column, minlength=part.probs.shape[1]) / 20000
        assert np.allclose(shares, part.probs[0], atol=0.015)


@pytest.mark.parametrize("settings", [{}, {"obs": "image"}, {"obs": "multidiscrete"}])
def test_values_are_the_policys(settings: dict[str, Any]) -> None:
    model = make_model(**settings)
    obs = np.stack([model.observation_space.sample() for _ in range(5)])
    actor = Actor(network_of(model.policy), parameters_of(model.policy), obs.shape[1:])
    with torch.no_grad():
        expected = model.policy.predict_values(model.policy.obs_to_tensor(obs)[0]).flatten().numpy()
    assert np.allclose(actor.values(obs), expected, atol=1e-5)


def pooled(env: str, count: int, rounds: int = 2) -> tuple[list[Rollout], Any]:
    """Rounds of 300 rows in EnvPool, and the policy."""
    policy = policy_of(env)
    collector = Collector(make(env, count, (1, 2), "envpool"), network_of(policy), 0.9, 0.8)
    parameters, steps = parameters_of(policy), 300 // count
    return [collector.collect(parameters, steps, np.random.default_rng(k), k) for k in range(rounds)], policy


def policy_of(env: str) -> Any:
    from stable_baselines3 import PPO

    from rollsight.environments.make import make_environments
    from rollsight.training.networks import MiniGridFeatures

    keywords: dict[str, Any] = {}
    if env.startswith("MiniGrid"):
        keywords = {"features_extractor_class": MiniGridFeatures, "normalize_images": False, "net_arch": []}
    kind = "CnnPolicy" if keywords else "MlpPolicy"
    return PPO(kind, make_environments(env, 1), policy_kwargs=keywords, device="cpu", seed=0).policy


@pytest.mark.parametrize(
    ("env", "count"), [("CartPole-v1", 1), ("CartPole-v1", 3), ("FrozenLake-v1", 3), ("MiniGrid-Empty-8x8-v0", 2)]
)
def test_the_compiled_rollout_is_the_plain_one(env: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("envpool", reason="needs EnvPool")
    compiled, _ = pooled(env, count)
    monkeypatch.setattr(collect, "rollout_in", lambda pool, network: None)
    plain, _ = pooled(env, count)
    for one, other in zip(compiled, plain, strict=True):
        for name in ("obs", "actions", "valid"):
            mine, theirs = getattr(one.records, name), getattr(other.records, name)
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs)
        for name in ("rewards", "advantages", "returns", "log_probs"):
            assert torch.allclose(getattr(one.records, name), getattr(other.records, name), atol=1e-5)
        assert np.array_equal(one.episodes.episode_step, other.episodes.episode_step)
        assert np.array_equal(one.episodes.finished_returns, other.episodes.finished_returns)


def test_the_compiled_rollout_clips_actions_and_records_them_as_sampled() -> None:
    pytest.importorskip("envpool", reason="needs EnvPool")
    (first, _), policy = pooled("BipedalWalker-v3", 2)
    actions = first.records.actions.numpy()
    noise = Actor(network_of(policy), parameters_of(policy), (24,)).noise(np.random.default_rng(0), 150, 2)
    with torch.no_grad():
        mean = policy.get_distribution(first.records.obs).distribution.mean.numpy()  # type: ignore[arg-type]
    assert np.abs(actions - mean - noise.swapaxes(0, 1).reshape(300, 4)).max() < 1e-5
    assert actions.max() > 1


def test_a_single_pooled_environment_loses_no_row() -> None:
    """Time limits included: the last observation counts, the next row shows the next episode's first."""
    pytest.importorskip("envpool", reason="needs EnvPool")
    for env, limit in (("CartPole-v1", None), ("MiniGrid-Empty-8x8-v0", 256)):
        for rollout in pooled(env, 1)[0]:
            records, step = rollout.records, rollout.episodes.episode_step[:, 0]
            assert bool(records.valid.all())
            first = torch.from_numpy(step == 0)
            assert first.any()
            if limit is None:
                assert float(records.obs[first].abs().max()) <= 0.05  # type: ignore[index]
                assert bool((records.rewards == 1).all())  # type: ignore[union-attr]
            for last in np.flatnonzero(step == (limit or 0) - 1):
                assert float(records.rewards[last]) != 0  # type: ignore[index]
                assert last == len(step) - 1 or step[last + 1] == 0


def test_minigrid_in_envpool_is_minigrid() -> None:
    """Bit by bit, over the end of an episode: the room is always the same one."""
    pytest.importorskip("envpool", reason="needs EnvPool")
    mine, theirs = (make("MiniGrid-Empty-8x8-v0", 1, (0,), stepper) for stepper in ("gymnasium", "envpool"))
    assert np.array_equal(mine.reset().obs, theirs.reset().obs)
    rng, ended = np.random.default_rng(0), []
    for _ in range(1500):
        action = rng.choice(7, 1, p=[0.15, 0.3, 0.4, 0.05, 0.05, 0.03, 0.02])
        one, other = mine.step(action), theirs.step(action)
        assert np.array_equal(one.obs, other.obs)
        assert one.obs.dtype == other.obs.dtype
        assert one.rewards == pytest.approx(list(other.rewards), abs=1e-6)
        assert (*one.terminated, *one.truncated) == (*other.terminated, *other.truncated)
        assert [i for i, _ in one.finals] == [i for i, _ in other.finals]
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(one.finals, other.finals, strict=True))
        ended += ["goal"] * one.terminated[0] + ["time"] * one.truncated[0]
    assert set(ended) == {"goal", "time"}


@pytest.mark.parametrize("stepper", ["gymnasium", "envpool"])
def test_episodes_of_real_environments(stepper: Any) -> None:
    if stepper == "envpool":
        pytest.importorskip("envpool", reason="needs EnvPool")
    from stable_baselines3 import PPO

    policy = PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0).policy
    both = []
    for _ in range(2):
        collector = Collector(make("CartPole-v1", 4, (1, 2), stepper), network_of(policy), 0.99, 0.95)
        both.append([collector.collect(parameters_of(policy), 64, np.random.default_rng(k), k) for k in (1, 2)])
    first, again = both
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.records.obs, other.records.obs)  # type: ignore[arg-type]
    for rollout in first:
        records = rollout.records
        assert bool((records.rewards[records.valid] == 1).all())  # type: ignore[index]
        assert bool(records.valid.all()) == (stepper == "gymnasium")
        start = torch.from_numpy(rollout.episodes.episode_step.T.ravel() == 0)
        assert float(records.obs[start].abs().max()) <= 0.05  # type: ignore[index]
        if stepper == "gymnasium":
            assert all(how is not None for how in rollout.episodes.start.T.ravel()[start])


@pytest.mark.parametrize("stepper", ["gymnasium", "envpool"])
def test_a_part_of_the_environments_is_stepped_as_all_of_them_are(stepper: Any) -> None:
    if stepper == "envpool":
        pytest.importorskip("envpool")
    whole, parts = (make("CartPole-v1", 3, (7,), stepper) for _ in range(2))
    began = whole.reset().obs
    assert np.array_equal(parts.reset().obs, began)
    outcomes = (whole.step(np.ones(3, dtype=np.int64)) for _ in range(40))
    steps = [outcome._replace(obs=outcome.obs.copy()) for outcome in outcomes]  # the next step may write into it
    taken = np.zeros(3, dtype=np.int64)
    rng = np.random.default_rng(0)
    while taken.min() < 20:
        only = np.flatnonzero(rng.random(3) < 0.6)
        if len(only):
            found = parts.step(np.ones(len(only), dtype=np.int64), only)
            for row, i in enumerate(only):
                expected = steps[taken[i]]
                assert np.array_equal(found.obs[row], expected.obs[i])
                assert found.terminated[row] == expected.terminated[i]
                assert found.rewards[row] == expected.rewards[i]
            taken[only] += 1
    assert len(set(taken.tolist())) > 1
    assert sum(step.terminated[0] for step in steps) > 1
    for one in (whole, parts):
        one.close()


def test_environments_that_are_not_covered_are_named() -> None:
    with pytest.raises(RollsightError, match=r"There is no environment 'CartPol-v1'; did you mean"):
        make("CartPol-v1", 1, (0,))
    pytest.importorskip("ale_py", reason="needs ale-py")
    with pytest.raises(RollsightError, match=r"ALE/Pong-v5\); use --engine sb3"):
        make("ALE/Pong-v5", 1, (0,))
