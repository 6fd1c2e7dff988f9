"""The analyses play the environment that was trained in: every wrapper of gymnasium's, or a refusal by its name."""

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from sb3_contrib.common.wrappers import ActionMasker, TimeFeatureWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from rollsight import runs
from rollsight.adapters.sb3.metadata import describe_env
from rollsight.environments.describe import describe_environments
from rollsight.environments.episode_start import EpisodeStart
from rollsight.environments.make import make_environments
from rollsight.environments.plain_values import NotPlain, decode, encode
from rollsight.environments.trained import STATISTICS, function_named, trained_environment
from rollsight.environments.vector import statistics_of
from rollsight.errors import RollsightError

POLE = "CartPole-v1"
BOUNDS = np.array([1, np.inf, 2, np.inf], np.float32)  # where CartPole has none, none may be asked for

# Arguments for those of gymnasium's wrappers that work on CartPole.
WORKING = {
    "AddRenderObservation": {"render_only": False},
    "AddWhiteNoise": {"probability_of_noise_per_pixel": 0.5},
    "Autoreset": {},
    "ClipReward": {"min_reward": 0.0, "max_reward": 0.25},
    "DelayObservation": {"delay": 2},
    "DtypeObservation": {"dtype": np.float64},
    "FlattenObservation": {},
    "FrameStackObservation": {"stack_size": 3, "padding_type": "zero"},
    "MaxAndSkipObservation": {"skip": 2},
    "NumpyToTorch": {},
    "ObstructView": {"obstructed_pixels_ratio": 0.1, "obstruction_width": 8},
    "OrderEnforcing": {},
    "PassiveEnvChecker": {},
    "RecordEpisodeStatistics": {},
    "RenderCollection": {},
    "RepeatAction": {"num_repeats": 3},
    "RescaleObservation": {"min_obs": -BOUNDS, "max_obs": BOUNDS},
    "ReshapeObservation": {"shape": (2, 2)},
    "StickyAction": {"repeat_action_probability": 0.4},
    "TimeAwareObservation": {"flatten": True, "normalize_time": True},
    "TimeLimit": {"max_episode_steps": 9},
}
REFUSED = {
    "NormalizeObservation": {},
    "NormalizeReward": {},
    "TransformAction": {"func": lambda action: 1 - action, "action_space": None},
    "TransformObservation": {"func": lambda obs: -obs, "observation_space": None},
    "TransformReward": {"func": lambda reward: -reward},
}
# Those that need images, dicts, bounds, numbers as actions, a screen, or actions of another array library.
NOT_FOR_CARTPOLE = {
    *("AtariPreprocessing", "ClipAction", "DiscretizeAction", "DiscretizeObservation", "FilterObservation"),
    *("GrayscaleObservation", "HumanRendering", "RescaleAction", "ResizeObservation"),
    *("ArrayConversion", "JaxToNumpy", "JaxToTorch"),
}


def run_of(folder, venv, **more):
    """A run folder that says how these environments were made, as training writes it."""
    metadata = {**describe_env(venv), "n_envs": venv.num_envs, **more}
    with runs.create(folder, metadata) as writer:
        state = statistics_of(venv)
        writer.write_round(1, {"records": 1, **({STATISTICS: json.dumps(state)} if state else {})})
    return runs.open(folder)


def again(folder, venv, **how):
    return trained_environment(run_of(folder, venv), "nothing can be played", round=1, **how)


def plain(obs):
    return {key: np.asarray(part) for key, part in obs.items()} if isinstance(obs, dict) else {"": np.asarray(obs)}


def played(env, steps=60):
    """Observations, rewards and ends of the steps of one environment from a seed and actions drawn from another."""
    rng, trace = np.random.default_rng(0), [env.reset(seed=11)[0]]
    for _ in range(steps):
        action = rng.integers(env.action_space.n)
        obs, reward, terminated, truncated, _ = env.step(action)
        trace += [obs, float(reward), terminated, truncated]
        if terminated or truncated:
            trace.append(env.reset()[0])
    return trace


def assert_equal(one, other):
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        mine, theirs = plain(mine), plain(theirs)
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert mine[key].dtype == theirs[key].dtype
            assert np.array_equal(mine[key], theirs[key])


def test_every_wrapper_of_gymnasium_is_looked_at():
    names = set(wrappers.__all__) - {"vector"}
    assert names == WORKING.keys() | REFUSED.keys() | NOT_FOR_CARTPOLE | {"RecordVideo"}


@pytest.mark.parametrize("name", WORKING)
@pytest.mark.filterwarnings("ignore")
def test_a_wrapper_is_played_as_in_training(name, tmp_path):
    if name == "NumpyToTorch":
        pytest.importorskip("array_api_compat")

    def make():
        return getattr(wrappers, name)(gym.make(POLE, render_mode="rgb_array"), **WORKING[name])

    venv = DummyVecEnv([lambda: Monitor(make())])
    assert_equal(played(again(tmp_path / "run", venv).one()), played(make()))


def test_no_analysis_records_videos_or_opens_windows(tmp_path):
    class RecordVideo(gym.Wrapper):
        """Gymnasium's needs a package for videos."""

    RecordVideo.__module__, RecordVideo.__qualname__ = "gymnasium.wrappers.rendering", "RecordVideo"
    venv = DummyVecEnv([lambda: RecordVideo(gym.make(POLE, render_mode="rgb_array"))])
    venv.envs[0].unwrapped.spec.kwargs["render_mode"] = "human"
    made = again(tmp_path / "run", venv).one()
    assert_equal(played(made), played(gym.make(POLE)))
    assert made.render_mode is None


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_a_wrapper_that_the_run_cannot_hold_is_refused_by_its_name(name, tmp_path):
    venv = DummyVecEnv([lambda: getattr(wrappers, name)(gym.make(POLE), **REFUSED[name])])
    with pytest.raises(RollsightError, match=f"inside {name}, which cannot be made again.*--env MODULE:FUNCTION"):
        again(tmp_path / "run", venv)


@pytest.mark.parametrize("name", sorted(NOT_FOR_CARTPOLE))
@pytest.mark.filterwarnings("ignore")
def test_the_others_do_not_work_on_cartpole(name):
    needed = {"bins": 3, "filter_keys": ["a"], "min_action": 0, "max_action": 1, "shape": (4, 4), "env_xp": np}
    if name.startswith(("Jax", "Array")):
        pytest.importorskip("array_api_compat")
    wrapper = getattr(wrappers, name)
    accepted = wrapper.__init__.__code__.co_varnames[: wrapper.__init__.__code__.co_argcount]
    with pytest.raises(Exception):  # noqa: B017  what each of them raises is its own
        played(wrapper(gym.make(POLE), **{k: v for k, v in needed.items() if k in accepted}), 2)


class Noise(gym.ObservationWrapper):
    """A user's own wrapper."""

    def observation(self, observation):
        return (observation + self.np_random.normal(size=4)).astype(np.float32)


class TimeLimit(wrappers.TimeLimit):
    """A class of the user's with the name of gymnasium's."""


class Own(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2)


def test_what_is_the_users_own_is_refused_by_its_name(tmp_path):
    with pytest.raises(RollsightError, match="inside TimeLimit, which cannot be made again"):
        again(tmp_path / "limit", DummyVecEnv([lambda: TimeLimit(gym.make(POLE), 9)]))
    with pytest.raises(RollsightError, match="inside Noise, which cannot be made again"):
        again(tmp_path / "a", DummyVecEnv([lambda: Noise(gym.make(POLE))]))
    with pytest.raises(RollsightError, match=r"test_environments\.Own is not registered.*--env"):
        again(tmp_path / "b", DummyVecEnv([Own]))
    differing = DummyVecEnv([lambda: gym.make(POLE), lambda: gym.make(POLE, max_episode_steps=7)])
    with pytest.raises(RollsightError, match=r"CartPole-v1, which cannot be made again .its environments differ"):
        again(tmp_path / "c", differing)

    class Squared(VecEnvWrapper):
        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            return self.venv.step_wait()

    with pytest.raises(RollsightError, match=r"inside .*Squared, which cannot be made again"):
        again(tmp_path / "d", Squared(DummyVecEnv([lambda: gym.make(POLE)])), make_env=lambda: gym.make(POLE))
    gym.register("OwnPole-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv")
    venv = DummyVecEnv([lambda: gym.make("OwnPole-v0")])
    try:
        assert again(tmp_path / "e", venv).one().spec.id == "OwnPole-v0"
        gym.registry["OwnPole-v0"].entry_point = "gymnasium.envs.classic_control:AcrobotEnv"
        with pytest.raises(RollsightError, match=r"OwnPole-v0 is .*AcrobotEnv here, and .* in .*CartPole"):
            again(tmp_path / "f", venv)
    finally:
        gym.registry.pop("OwnPole-v0")
    with pytest.raises(RollsightError, match=r"no environment 'OwnPole-v0'.*--env MODULE:FUNCTION"):
        again(tmp_path / "g", venv)


def test_keywords_limit_and_order_of_wrappers_are_kept(tmp_path):
    def lake():
        return EpisodeStart(gym.make("FrozenLake-v1", is_slippery=False, desc=["SF", "FG"], max_episode_steps=5))

    made = again(tmp_path / "lake", DummyVecEnv([lambda: Monitor(lake())])).one()
    assert_equal(played(made), played(lake()))
    assert [made.step(a)[1:3] for a in (made.reset() and [1, 2])] == [(0.0, False), (1.0, True)]

    def limited():  # the limit counts the policy's steps, of four each
        return wrappers.TimeLimit(wrappers.RepeatAction(gym.make(POLE), 4), 2)

    trace = played(again(tmp_path / "order", DummyVecEnv([limited])).one())
    assert_equal(trace, played(limited()))
    assert trace[8] is True  # truncated in the second step

    def marked():
        return TimeFeatureWrapper(gym.make(POLE), max_steps=30)

    assert_equal(played(again(tmp_path / "time", DummyVecEnv([marked])).one()), played(marked()))


@pytest.mark.parametrize("name", ["MiniGrid-Empty-5x5-v0", "ALE/Pong-v5", "BipedalWalker-v3", "CartPole-v1"])
def test_what_our_own_runs_train_in_is_made_again(name, tmp_path):
    venv = make_environments(name, 1)
    made = again(tmp_path / "run", venv).vectorised(1)
    assert (made.observation_space, made.action_space) == (venv.observation_space, venv.action_space)
    actions = [[venv.action_space.sample()] for _ in range(25)]
    for envs in (venv, made):
        envs.seed(3)
    assert np.array_equal(venv.reset(), made.reset())
    for action in actions:
        for mine, theirs in zip(made.step(action)[:3], venv.step(action)[:3], strict=True):
            assert np.array_equal(mine, theirs)


def test_environments_in_processes_of_their_own_are_described_too(tmp_path):
    """Where the arguments of a wrapper cannot be pickled, asking for `spec` would end the process."""
    venv = SubprocVecEnv([lambda: wrappers.ClipReward(gym.make(POLE), 0, 0.5)], start_method="spawn")
    limited = again(tmp_path / "a", venv)
    venv.close()
    assert_equal(played(limited.one()), played(wrappers.ClipReward(gym.make(POLE), 0, 0.5)))
    venv = SubprocVecEnv(
        [lambda: wrappers.TransformReward(gym.make(POLE), lambda reward: -reward)], start_method="fork"
    )
    with pytest.raises(RollsightError, match="inside TransformReward"):
        again(tmp_path / "b", venv)
    assert venv.reset().shape == (1, 4)  # it lives
    venv.close()


class Pictures(gym.ObservationWrapper):
    """CartPole's four numbers as an image and a vector."""

    def __init__(self, env):
        super().__init__(env)
        image = gym.spaces.Box(0, 255, (40, 36, 3), np.uint8)
        self.observation_space = gym.spaces.Dict({"image": image, "vector": env.observation_space})

    def observation(self, observation):
        image = np.full((40, 36, 3), int(100 * abs(observation[2])), np.uint8)
        return {"image": image, "vector": observation}


def pictures():
    return Pictures(gym.make(POLE))


VECTOR = {
    "stack": lambda venv: VecFrameStack(venv, 3),
    "stack_first": lambda venv: VecFrameStack(venv, 2, channels_order="first"),
    "observers": lambda venv: VecMonitor(VecCheckNan(VecFrameStack(venv, 2))),
    "normalize": lambda venv: VecNormalize(venv, clip_obs=1.5, epsilon=0.1),
    "normalize_stacked": lambda venv: VecNormalize(VecFrameStack(venv, 2), norm_reward=False),
    "pictures": lambda venv: VecNormalize(
        VecFrameStack(VecTransposeImage(venv), 2, channels_order={"image": "first", "vector": None}),
        norm_obs_keys=["vector"],
    ),
    "extract": lambda venv: VecFrameStack(VecExtractDictObs(venv, "vector"), 2),
}


@pytest.mark.filterwarnings("ignore:.*wrapped with a .Monitor. wrapper")
@pytest.mark.parametrize("kind", VECTOR)
def test_vector_wrappers_are_played_with_what_they_had_seen(kind, tmp_path):
    """Side by side as the host plays them, and alone as branches do; what is normalised learns nothing more."""
    make_env = pictures if kind in ("pictures", "extract") else lambda: gym.make(POLE)
    venv = VECTOR[kind](DummyVecEnv([make_env] * 2))
    rng = np.random.default_rng(0)
    venv.reset()
    for _ in range(50):
        venv.step(rng.integers(2, size=2))
    trained = again(tmp_path / "run", venv, make_env=make_env)
    made, before = trained.vectorised(2), statistics_of(venv)
    wrapper = venv
    while isinstance(wrapper, VecEnvWrapper):
        wrapper.training = False
        wrapper = wrapper.venv
    for envs in (venv, made):
        envs.seed(5)
    alone = [trained.alone(), trained.alone()]
    theirs, mine = venv.reset(), made.reset()
    own = [env.reset(seed=5 + i)[0] for i, env in enumerate(alone)]
    for _ in range(30):
        assert_equal([theirs], [mine])
        for i in range(2):
            assert_equal([{key: part[i] for key, part in plain(theirs).items()}], [plain(own[i])])
        actions = rng.integers(2, size=2)
        theirs, rewards, dones, _ = venv.step(actions)
        mine, again_rewards, again_dones, _ = made.step(actions)
        assert np.array_equal(rewards, again_rewards)
        assert np.array_equal(dones, again_dones)
        steps = [env.step(action) for env, action in zip(alone, actions, strict=True)]
        assert [step[2] or step[3] for step in steps] == dones.tolist()
        assert [step[1] for step in steps] == [1.0, 1.0]  # the environment's own
        if dones.any():
            break
        own = [step[0] for step in steps]
    else:
        pytest.fail("no episode ended")
    assert statistics_of(made) == before


def test_a_lone_environment_inside_vector_wrappers_is_copied_where_it_stands(tmp_path):
    import pickle

    venv = VecNormalize(VecFrameStack(DummyVecEnv([lambda: gym.make(POLE)]), 3))
    venv.reset()
    env = again(tmp_path / "run", venv).alone()
    env.reset(seed=2)
    env.step(1)
    copy = pickle.loads(pickle.dumps(env))
    assert np.array_equal(copy.step(0)[0], env.step(0)[0])


def test_make_env_takes_the_place_of_the_environment(tmp_path):
    def negative():
        return wrappers.TransformReward(gym.make(POLE), lambda reward: -reward)

    venv = VecFrameStack(DummyVecEnv([negative]), 2)
    trained = again(tmp_path / "a", venv, make_env=negative)
    assert trained.alone().reset(seed=0)[0].shape == (8,)
    assert_equal(played(trained.one()), played(negative()))
    with pytest.raises(RollsightError, match=r"wrong.. raised KeyError .'x'.: it must return an environment"):
        again(tmp_path / "b", venv, make_env=wrong).one()
    with pytest.raises(RollsightError, match=r"int.. returned a int: it must return one gymnasium environment"):
        again(tmp_path / "c", venv, make_env=int).one()
    same = gym.make(POLE)
    with pytest.raises(RollsightError, match="returned one environment twice"):
        again(tmp_path / "d", venv, make_env=lambda: same).vectorised(2)


def wrong():
    raise KeyError("x")


def test_a_function_is_named_by_module_and_name(tmp_path, monkeypatch):
    (tmp_path / "my_own_envs.py").write_text("import gymnasium\ndef make(): return gymnasium.make('CartPole-v1')\n")
    monkeypatch.chdir(tmp_path)
    assert function_named("my_own_envs:make")().spec.id == POLE
    for text, said in {
        "my_own_envs": "names no function: write MODULE:FUNCTION",
        "my_own_envs:made": "the module my_own_envs has no function made",
        "no_such_envs:make": "the module no_such_envs cannot be imported",
    }.items():
        with pytest.raises(RollsightError, match=said):
            function_named(text)


EARLIER = {"env": POLE, "env_kwargs": {"render_mode": "rgb_array"}, "max_episode_steps": 9, "env_wrappers": []}


def earlier(folder, **changes):
    with runs.create(folder, {**EARLIER, **changes}) as writer:
        writer.write_round(1, {"records": 1})
    return trained_environment(runs.open(folder), "nothing can be played", round=1)


def test_a_run_of_an_earlier_version_keeps_its_keywords_and_limit_or_is_refused(tmp_path):
    trace = played(earlier(tmp_path / "limit").one())
    assert_equal(trace, played(gym.make(POLE, max_episode_steps=9)))
    lake = {"env": "FrozenLake-v1", "env_kwargs": {"is_slippery": False}, "max_episode_steps": 100}
    assert earlier(tmp_path / "lake", **lake).one().unwrapped.spec.kwargs["is_slippery"] is False
    assert earlier(tmp_path / "image", env_wrappers=["VecTransposeImage", "VecMonitor"]).vector == ()
    atari = {"env": "ALE/Pong-v5", "env_kwargs": {}, "max_episode_steps": None}
    stacked = earlier(tmp_path / "atari", **atari, env_wrappers=["VecTransposeImage", "VecFrameStack"])
    assert stacked.vectorised(1).observation_space.shape == (84, 84, 4)
    assert stacked.alone().observation_space.shape == (84, 84, 4)
    for number, (changes, said) in enumerate(
        [
            ({"env_wrappers": ["VecFrameStack"]}, "inside VecFrameStack, whose arguments the run does not hold"),
            ({"env_wrappers": ["VecNormalize"]}, "inside VecNormalize, whose running statistics"),
            ({"env_wrappers": ["MyVecWrapper"]}, "inside MyVecWrapper, whose arguments"),
            ({"env_wrappers": "VecNormalize"}, "env_wrappers"),
            ({"env_kwargs": "is_slippery=False"}, "env_kwargs"),
            ({"env_kwargs": {"no_such": 1}}, "CartPole-v1 cannot be made again .TypeError"),
            ({"max_episode_steps": "nine"}, "max_episode_steps"),
            ({"env": None}, "does not say which environment"),
            ({"env": "CartPol-v1"}, "did you mean CartPole-v1"),
            ({"environment": "a text"}, "environment"),
            ({"environment": {"id": POLE, "vec_wrappers": [3]}}, "environment"),
        ]
    ):
        with pytest.raises(RollsightError, match=said) as caught:
            earlier(tmp_path / str(number), **changes)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    ["subprocess:Popen", "gymnasium.wrappers.rendering:RecordVideo", "my_envs.action_masker:ActionMasker", "os:system"],
)
def test_a_run_cannot_name_other_code_to_load(path, tmp_path, monkeypatch):
    import importlib

    described = describe_env(DummyVecEnv([lambda: gym.make(POLE)]))["environment"]
    described["wrappers"].append({"wrapper": path, "arguments": {}})
    loaded = []
    monkeypatch.setattr(importlib, "import_module", lambda name: loaded.append(name))
    with pytest.raises(RollsightError, match="which cannot be made again"):
        earlier(tmp_path / "run", environment=described)
    assert not loaded


def test_arguments_come_back_from_json_as_they_were():
    values = [
        *(None, True, 3, -0.5, "text", float("inf"), (1, (2.5, "x")), {"a": [1, {"tuple": 2}]}, {1: "one", "b": 2}),
        *(np.float32(0.1), np.arange(6).reshape(2, 3), np.array([np.inf, 1.0], np.float32), np.dtype("uint8")),
        *(np.float64, {"array": 1, "dtype": 2}),
    ]
    for value in values:
        back = decode(json.loads(json.dumps(encode(value), allow_nan=False)))
        assert type(back) is type(value)
        assert np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value
        assert getattr(back, "dtype", None) == getattr(value, "dtype", None)
    for value in (print, object(), {1, 2}, np.array(["text"]), gym):
        with pytest.raises(NotPlain):
            encode(value)
    with pytest.raises(ValueError):
        decode({"array": ["x"], "dtype": "object"})


def test_action_masks_by_name(tmp_path):
    class Masked(gym.Wrapper):
        def action_mask(self):
            return np.array([True, False])

    venv = DummyVecEnv([lambda: ActionMasker(Masked(gym.make(POLE)), "action_mask")])
    (masker,) = (layer for layer in describe_environments(venv)["wrappers"] if "Masker" in layer["wrapper"])
    assert masker["arguments"] == {"action_mask_fn": "action_mask"}
    venv = DummyVecEnv([lambda: ActionMasker(gym.make(POLE), lambda env: np.ones(2, bool))])
    with pytest.raises(RollsightError, match="inside ActionMasker"):
        again(tmp_path / "run", venv)
