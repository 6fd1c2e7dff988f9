"""`intervene`, `fidelity` and `diagnose` on runs whose environments are wrapped, from training to the command line."""

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TransformReward
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from rollsight import cli, runs
from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.analysis.diagnosis.advantages import advantage_from
from rollsight.analysis.diagnosis.round import diagnose_round
from rollsight.analysis.diagnosis.round_data import RoundData
from rollsight.analysis.fidelity.round import FidelityRound, FidelitySettings
from rollsight.analysis.intervention.run import InterventionSettings, run_intervention
from rollsight.environments.episode_start import EpisodeStart
from rollsight.playing.common_episodes import CommonEpisodes
from rollsight.snapshot import Snapshot

POLE = "CartPole-v1"


class Noise(gym.ObservationWrapper):
    def observation(self, observation):
        return (observation + self.np_random.normal(scale=0.1, size=4)).astype(np.float32)


def noisy():
    return EpisodeStart(Noise(gym.make(POLE)))


def negative():
    return EpisodeStart(TransformReward(gym.make(POLE), lambda reward: -reward))


def limited():
    return EpisodeStart(gym.make(POLE, max_episode_steps=9))


def pole():
    return make_vec_env(POLE, 2, wrapper_class=EpisodeStart)


class Kept(BaseCallback):
    """What `VecNormalize` had seen when the last rollout ended, as the host saves it."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.model.get_vec_normalize_env().save(self.path)


def train(path, venv, rounds=2, steps=64, callbacks=(), **settings):
    model = PPO("MlpPolicy", venv, n_steps=steps, batch_size=32, n_epochs=2, seed=0, device="cpu", **settings)
    influence = InfluenceCallback(run=path, snapshots=f"every:{rounds}")
    model.learn(rounds * steps * venv.num_envs, callback=[influence, *callbacks])
    venv.close()
    return path


def intervened(path, round=2, **how):
    arms = run_intervention(InterventionSettings(path, (round,), orders=1, episodes=6), **how).rounds[0].arms
    return {name: arm.returns[0] for name, arm in arms.items()}


def command(capsys, *arguments):
    """What a command says: its JSON, or its error."""
    code = cli.main([*arguments, "--json"])
    said = capsys.readouterr()
    return json.loads(said.out) if code == 0 else said.err


def all_three(capsys, path, folder, *more, round=2):
    yield command(capsys, "intervene", str(path), "--orders", "1", "--episodes", "4", "--processes", "1", *more)
    yield command(capsys, "fidelity", str(path), "--round", str(round), "--masks", "4", *more)
    small = ("--records", "8", "--branches", "4", "--processes", "1", "--out", str(folder), "--overwrite")
    yield command(capsys, "diagnose", str(path), *small, *more)


def test_a_lake_that_is_not_slippery_stays_so_in_the_analyses(tmp_path):
    venv = make_vec_env("FrozenLake-v1", 1, env_kwargs={"is_slippery": False}, wrapper_class=EpisodeStart)
    path = train(tmp_path / "lake", venv, rounds=12, steps=256, learning_rate=3e-3)
    trained = runs.open(path).sql("select return_mean from rounds where round = 12").fetchall()[0][0]
    assert trained > 0.9
    assert intervened(path, 12)["unfiltered"].tolist() == [1.0] * 6
    fresh = FidelityRound(FidelitySettings(path, 12)).fresh
    assert float(fresh.rewards.sum()) >= len(fresh) / 8  # the shortest way is six steps, few of which lead elsewhere
    data = RoundData(runs.open(path), 12)
    assert data.environment.one().unwrapped.spec.kwargs["is_slippery"] is False


def test_a_time_limit_of_the_users_holds_in_the_analyses(tmp_path):
    path = train(tmp_path / "limit", make_vec_env(limited, 2))
    assert runs.open(path).metadata["max_episode_steps"] == 9
    assert all(values.max() <= 9 for values in intervened(path).values())
    diagnosis = diagnose_round(RoundData(runs.open(path), 2), records=8, branches=4)
    assert all(record.q_bar <= 9 for record in diagnosis.records)


@pytest.mark.parametrize(("make", "wrapper"), [(negative, "TransformReward"), (noisy, "Noise")])
def test_what_cannot_be_made_again_is_refused_by_name_or_given(make, wrapper, tmp_path, capsys):
    path = train(tmp_path / "run", make_vec_env(make, 2))
    for error in all_three(capsys, path, tmp_path / "figures"):
        assert "Traceback" not in error
        assert error.splitlines()[-1].startswith("error: ")
        assert f"trained inside {wrapper}, which cannot be made again" in error
        assert "--env MODULE:FUNCTION" in error
    given = ("--env", f"{__name__}:{make.__name__}")
    intervention, fidelity, diagnosis = all_three(capsys, path, tmp_path / "figures", *given)
    returns = intervention["rounds"][0]["arms"]["unfiltered"]["returns"]
    sign = -1 if make is negative else 1
    assert all(sign * value > 0 for value in np.ravel(returns))
    assert all(sign * record["q_bar"] > 0 for record in diagnosis["records"])
    assert fidelity["env"] == POLE
    if make is negative:  # in Python a function that no module holds will do, in processes of their own too
        assert intervened(path, make_env=lambda: make(), processes=2)["unfiltered"].max() < 0


def test_a_given_environment_must_fit_the_policy(tmp_path, capsys):
    path = train(tmp_path / "run", pole())
    for error in all_three(capsys, path, tmp_path / "figures", "--env", f"{__name__}:acrobot"):
        assert "gives Box(" in error
        assert "the policy was trained on Box(" in error
        assert error.splitlines()[-1].startswith("error: ")
    for error in all_three(capsys, path, tmp_path / "figures", "--env", f"{__name__}:POLE"):
        assert "has no function POLE" in error


def acrobot():
    return gym.make("Acrobot-v1")


def test_stacked_frames(tmp_path, capsys):
    path = train(tmp_path / "run", VecFrameStack(pole(), 3))
    intervention, fidelity, diagnosis = all_three(capsys, path, tmp_path / "figures")
    assert intervention["env"] == fidelity["env"] == POLE
    assert diagnosis["method"] == "copy"
    assert {len(record["obs"]) for record in diagnosis["records"]} == {12}
    plain = train(tmp_path / "plain", VecFrameStack(make_vec_env(POLE, 2), 3))
    error = command(capsys, "diagnose", str(plain), "--out", str(tmp_path / "none"))
    assert "cannot be branched: its state cannot be set, and the run does not store how" in error
    assert error.splitlines()[-1].startswith("error: ")


def test_statistics_of_vec_normalize(tmp_path, capsys):
    """The policy sees what it saw, by the host's own file of statistics; returns are the environment's own."""
    host = tmp_path / "host.pkl"
    venv = VecNormalize(make_vec_env("Pendulum-v1", 2, wrapper_class=EpisodeStart))
    path = train(tmp_path / "run", venv, rounds=3, steps=512, callbacks=[Kept(host)])
    run = runs.open(path)
    rounds = run.sql("select round, vec_normalize from rounds order by round").fetchall()
    assert [text is not None for _, text in rounds] == [False, False, True]
    units = run.metadata["units"]
    assert units["reward"] == units["episode_return"] == "the environment's reward"
    assert "VecNormalize" in units["advantage"] == units["value"] == units["return"]

    def as_saved(count):
        made = VecNormalize.load(str(host), make_vec_env("Pendulum-v1", count))
        made.training = False
        return made

    snapshot = Snapshot.load(run.snapshot_path(3))
    expected = CommonEpisodes(as_saved, 6, (0, 3))(snapshot.replay("repack", order=0).policy.module)
    found = intervened(path, 3)["unfiltered"]
    assert np.array_equal(found, expected)
    assert found.max() < -100  # normalised rewards add up to about -10

    fresh = FidelityRound(FidelitySettings(path, 3)).fresh
    spread = float(np.sqrt(VecNormalize.load(str(host), make_vec_env("Pendulum-v1", 1)).ret_rms.var))
    median = float(fresh.rewards.median())  # the last of an episode holds the host's bootstrapping
    assert -17 / spread < median < -1 / spread  # Pendulum pays down to -16.3
    assert float(fresh.obs.abs().mean()) == pytest.approx(0.8, abs=0.3)

    diagnosis = command(
        capsys, *("diagnose", str(path), "--records", "8", "--branches", "4", "--processes", "1"),
        *("--out", str(tmp_path / "figures")),
    )  # fmt: skip
    assert np.mean([record["q_bar"] for record in diagnosis["records"]]) < -20
    assert any("as VecNormalize scales it" in note for note in diagnosis["notes"])


def test_a_run_without_those_statistics_is_refused(tmp_path, capsys):
    path = train(tmp_path / "run", VecNormalize(pole()))
    metadata = json.loads((path / "run.json").read_text())
    del metadata["environment"]  # as earlier versions wrote it
    (path / "run.json").write_text(json.dumps(metadata))
    for error in all_three(capsys, path, tmp_path / "figures"):
        assert "inside VecNormalize, whose running statistics the run does not hold" in error


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"env": "Acrobot-v1"}, "the policy was trained on Box"),
        ({"env": "MountainCar-v0"}, "the policy was trained on Box"),
        ({"env_kwargs": "is_slippery"}, "are not keywords"),
        ({"env_wrappers": ["VecFrameStack"]}, "inside VecFrameStack, whose arguments the run does not hold"),
        ({"environment": {"vec_wrappers": None}}, "that is damaged"),
    ],
)
def test_metadata_of_another_environment_are_one_sentence(changes, said, pole_run, tmp_path, capsys):
    moved = changed(pole_run, tmp_path, {"environment": None, **changes})
    for error in all_three(capsys, moved, tmp_path / "figures"):
        assert said in error
        assert error.splitlines()[-1].startswith("error: ")


def changed(run, folder, metadata):
    """The run with other metadata."""
    moved = folder / "moved"
    moved.mkdir()
    for part in ("records", "rounds", "snapshots"):
        (moved / part).symlink_to(run / part)
    (moved / "run.json").write_text(json.dumps({**json.loads((run / "run.json").read_text()), **metadata}))
    return moved


@pytest.fixture(scope="module")
def pole_run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "pole", pole())


@pytest.mark.parametrize("settings", [None, "gamma=0.99", {"gamma": "x", "gae_lambda": 0.9}, {"gamma": 0.9}])
def test_metadata_without_discounts_are_one_sentence(settings, pole_run, tmp_path, capsys):
    _, fidelity, diagnosis = all_three(
        capsys, changed(pole_run, tmp_path, {"settings": settings}), tmp_path / "figures"
    )
    assert "does not say its g" in fidelity
    assert "does not say its g" in diagnosis


def test_a_difference_of_rounding_is_none():
    returns = np.array([10.0, 10.0, 10.0 + 4e-15, 10.0])
    assert advantage_from(returns, np.array([True, True, False, False]), 2, 0.3)[1:] == (0.0, 0.0)
    assert advantage_from(returns * 0, np.array([True, True, False, False]), 2, 0.3) == (0.0, 0.0, 0.0)
    found = advantage_from(np.array([10.0, 10.0, 10.0, 10.0 + 1e-9]), np.array([True, True, False, False]), 2, 0.3)
    assert found[1] < 0
