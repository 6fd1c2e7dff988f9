"""Names of observations and actions fit the environments that they are of."""

import gymnasium as gym
import pytest

from rollsight.environments.features import Feature, action_features, action_names, observation_features
from rollsight.environments.make import check_environment

CLASSIC = ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0"]
TOY = ["FrozenLake-v1", "CliffWalking-v1", "Taxi-v4", "Blackjack-v1"]
BOX2D = ["LunarLander-v3", "BipedalWalker-v3"]
HIGHWAY = ["highway-v0", "highway-fast-v0", "merge-v0", "roundabout-v0", "intersection-v0", "exit-v0"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*CLASSIC, *TOY, *BOX2D, *HIGHWAY, "MiniGrid-Empty-5x5-v0"])
def test_there_are_as_many_as_the_environment_has(name):
    package = {"H": "highway_env"}.get("H" if name in HIGHWAY else "") or ("Box2D" if name in BOX2D else "gymnasium")
    pytest.importorskip("minigrid" if name.startswith("Mini") else package)
    check_environment(name)
    env = gym.make(name)
    if name in (*CLASSIC, *BOX2D, *HIGHWAY):
        size = gym.spaces.flatdim(env.observation_space)
        found = observation_features(name, size)
        assert len({feature.name for feature in found}) == size
        assert observation_features(name, size + 1) is None
    if isinstance(env.action_space, gym.spaces.Discrete):
        assert len(set(action_names(name))) == env.action_space.n
    else:
        assert len(action_features(name, env.action_space.shape[0])) == env.action_space.shape[0]


@pytest.mark.parametrize("name", HIGHWAY)
def test_highway_says_the_same(name):
    pytest.importorskip("highway_env")
    check_environment(name)
    inner = gym.make(name).unwrapped
    observed = inner.observation_type
    said = {"presence": "presence", "x": "x", "y": "y", "vx": "velocity x", "vy": "velocity y"}
    said |= {"cos_h": "cos of heading", "sin_h": "sin of heading"}
    features = observation_features(name, gym.spaces.flatdim(inner.observation_space))
    assert [one.name for one in features[: len(observed.features)]] == [
        f"ego vehicle {said[f]}" for f in observed.features
    ]
    actions = [text.lower().replace("_", " ") for text in inner.action_type.actions.values()]
    assert list(action_names(name)) == actions


def test_units_are_given():
    assert observation_features("CartPole-v1", 4)[2] == Feature("pole angle", "rad")
    assert action_features("Pendulum-v1", 1) == (Feature("torque", "N m"),)
    assert (
        action_names("Unknown-v0") is observation_features("Unknown-v0", 3) is action_features("Unknown-v0", 1) is None
    )
