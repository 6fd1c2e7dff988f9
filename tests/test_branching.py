"""Branches of real environments start where the record stood, and go on as the recorded episode did."""

import copy

import numpy as np
import pytest

from rollsight.analysis.diagnosis.branching import Brancher, choose_method
from rollsight.environments.episode_start import START, restart
from rollsight.environments.make import make_environment
from rollsight.environments.states import BranchPoint, can_be_set
from rollsight.errors import RollsightError


def see(obs):
    return np.asarray(obs).reshape(-1)


def make(name):
    return lambda: make_environment(name, disable_env_checker=True)


def play(name, until):
    """The second episode of an environment: its start, and for each step observation, action, random state, result.

    The second, because it starts from a random state and not from a seed.
    """
    env = make(name)()
    env.reset(seed=3)
    env.action_space.seed(5)
    for _ in range(7):
        if any(env.step(env.action_space.sample())[2:4]):
            env.reset()
    while True:
        obs, info = env.reset()
        steps = []
        for _ in range(until + 6):
            action = env.action_space.sample()
            state = copy.deepcopy(env.unwrapped.np_random.bit_generator.state)
            result = env.step(action)
            steps.append((obs, action, state, result))
            obs = result[0]
            if result[2] or result[3]:
                break
        if len(steps) > until:
            return info[START], steps


def point_at(start, steps, step, *, with_start=True):
    obs, action = steps[step][:2]
    prefix = np.array([a for _, a, _, _ in steps[:step]])
    return BranchPoint(0, step, see(obs), action, *((start, prefix) if with_start else ()))


def seeds(count):
    return np.random.SeedSequence(0).spawn(count)


CONTROL = {
    "FrozenLake-v1": 4,
    "CliffWalking-v1": 20,
    "Taxi-v4": 20,
    "CartPole-v1": 12,
    "Acrobot-v1": 25,
    "MountainCar-v0": 25,
    "MountainCarContinuous-v0": 25,
    "Pendulum-v1": 25,
}
OTHERS = {"MiniGrid-Empty-5x5-v0": ("copy", 9), "LunarLander-v3": ("replay", 40), "BipedalWalker-v3": ("replay", 30)}


@pytest.mark.parametrize(("name", "step"), CONTROL.items())
def test_a_state_that_was_set_goes_on_as_recorded(name, step):
    start, steps = play(name, step)
    point = point_at(start, steps, step, with_start=False)
    (env,) = Brancher(make(name), "set", see).branch(point, seeds(1))
    env.unwrapped.np_random.bit_generator.state = steps[step][2]
    for _, action, _, (obs, reward, terminated, truncated, _) in steps[step:]:
        again = env.step(action)
        assert np.allclose(see(again[0]), see(obs), rtol=1e-4, atol=1e-5)
        assert again[1] == pytest.approx(reward, rel=1e-4)
        assert again[2:4] == (terminated, truncated)


@pytest.mark.parametrize(("name", "method", "step"), [(name, *rest) for name, rest in OTHERS.items()])
def test_copies_and_replays_go_on_exactly_as_recorded(name, method, step):
    start, steps = play(name, step)
    point = point_at(start, steps, step)
    assert choose_method(make(name), see, [point]) == method
    brancher = Brancher(make(name), method, see)
    for _ in range(2):  # environments are used again
        for env in brancher.branch(point, seeds(2)):
            env.unwrapped.np_random.bit_generator.state = steps[step][2]
            for _, action, _, (obs, reward, terminated, truncated, _) in steps[step:]:
                again = env.step(action)
                assert np.array_equal(see(again[0]), see(obs))
                assert again[1:4] == (reward, terminated, truncated)


@pytest.mark.parametrize(("name", "method", "step"), [("FrozenLake-v1", "set", 4), ("LunarLander-v3", "replay", 20)])
def test_branches_have_random_streams_of_their_own(name, method, step):
    start, steps = play(name, step)
    point = point_at(start, steps, step)

    def continued():
        environments = Brancher(make(name), method, see).branch(point, seeds(8))
        return [see(env.step(point.action)[0]).tolist() for env in environments]

    first = continued()
    assert len({tuple(obs) for obs in first}) > 1
    assert continued() == first


@pytest.mark.parametrize(("name", "limit"), [("FrozenLake-v1", 100), ("CartPole-v1", 500)])
def test_the_time_limit_goes_on_counting(name, limit):
    env = make(name)()
    brancher = Brancher(make(name), "set", see)
    obs = see(env.reset(seed=0)[0])
    for left in (3, 1):
        (env,) = brancher.branch(BranchPoint(0, limit - left, obs, 0), seeds(1))
        ends = [env.step(step % 2)[3] for step in range(left)]
        assert ends == [False] * (left - 1) + [True]


def test_a_replay_that_arrives_elsewhere_is_refused():
    start, steps = play("LunarLander-v3", 20)
    point = point_at(start, steps, 20)
    wrong = BranchPoint(0, 20, point.obs + 0.01, point.action, point.start, point.prefix)
    with pytest.raises(RollsightError, match=r"LunarLander-v3 cannot be branched: .*step 20 does not reproduce"):
        choose_method(make("LunarLander-v3"), see, [wrong])
    with pytest.raises(RollsightError, match=r"differs from the stored one by 0\.01"):
        Brancher(make("LunarLander-v3"), "replay", see).branch(wrong, seeds(1))


def test_another_environment_than_the_runs_is_noticed_where_states_can_be_set():
    """FrozenLake's state is a number in every map: only a replay can tell."""
    start, steps = play("FrozenLake-v1", 7)
    points = [point_at(start, steps, step) for step in range(1, 8)]  # one alone may well agree by chance
    assert choose_method(make("FrozenLake-v1"), see, points) == "set"
    with pytest.raises(RollsightError, match="cannot be branched"):
        choose_method(lambda: make_environment("FrozenLake-v1", is_slippery=False), see, points)


def test_without_the_start_of_the_episode():
    start, steps = play("LunarLander-v3", 5)
    point = point_at(start, steps, 5, with_start=False)
    with pytest.raises(RollsightError, match="does not store how the episodes of these records started"):
        choose_method(make("LunarLander-v3"), see, [point])
    assert choose_method(make("CartPole-v1"), see, [point]) == "set"


def test_hidden_state_is_not_set():
    assert can_be_set(make("Taxi-v4")())
    assert not can_be_set(make_environment("Taxi-v4", fickle_passenger=True))
    assert not can_be_set(make("Blackjack-v1")())


@pytest.mark.parametrize("name", ["BipedalWalker-v3", "LunarLander-v3", "ALE/Pong-v5"])
def test_a_later_episode_is_repeated_in_a_new_environment(name: str) -> None:
    """The physics of one episode, and the emulator's own random numbers, must not reach into the next."""
    env = make_environment(name)
    rng = np.random.default_rng(0)
    env.action_space.seed(0)
    obs, info = env.reset(seed=3)
    start, actions, seen = info[START], [], [obs]
    for _ in range(2):  # the third episode
        over = False
        while not over:
            obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
            # Atari: a reset before the end only loses a life.
            over = terminated or truncated or (rng.random() < 0.005 and "ALE" not in name)
        obs, info = env.reset()
        start, actions, seen = info[START], [], [obs]
    for _ in range(40):
        actions.append(env.action_space.sample())
        obs, _, terminated, truncated, _ = env.step(actions[-1])
        seen.append(obs)
        if terminated or truncated:
            break
    other = make_environment(name)
    for _ in range(2):  # the second time in the middle of an episode
        restart(other, start)
        other.step(actions[0])
    again = [restart(other, start), *(other.step(action)[0] for action in actions)]
    np.testing.assert_array_equal(np.array(again), np.array(seen))
