"""A run goes on where its model stands in it, and with no other model."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import pyarrow.parquet as pq
import pytest
from sb3_zoo import make_env, make_model
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback

from rollsight import RollsightError, runs
from rollsight.adapters.sb3 import InfluenceCallback

SMALL: dict[str, Any] = {"n_steps": 24, "batch_size": 8, "n_epochs": 2, "device": "cpu", "seed": 3}


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rounds, and a checkpoint every 8 time steps, at the last step of each rollout among them."""
    folder = tmp_path_factory.mktemp("continued")
    model = make_model()
    keep = CheckpointCallback(8, str(folder / "checkpoints"), "at")
    influence = InfluenceCallback(run=folder / "run", snapshots="all", evaluate=lambda model, round: ([1.0], [1]))
    after = AfterUpdates(folder / "checkpoints")
    model.learn(8 * 24, callback=[keep, after, influence])
    model.save(folder / "checkpoints" / "end")
    return folder


class AfterUpdates(BaseCallback):
    """Saves the model between an update and the next rollout's first step."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.model.save(self.folder / f"after_{self.model.num_timesteps // 24}")


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to write to."""
    return Path(shutil.copytree(trained_run / "run", tmp_path / "run"))


def load(folder: Path, name: str) -> Any:
    return PPO.load(folder / "checkpoints" / name, env=make_env(), device="cpu")


def go_on(model: Any, run: Path, rounds: int = 2, **options: Any) -> dict[str, Any]:
    """Continue; the last entry of `continued`."""
    model.learn(24 * rounds, callback=InfluenceCallback(run=run, snapshots="all", **options), reset_num_timesteps=False)
    entry: dict[str, Any] = runs.open(run).metadata["continued"][-1]
    return entry


def timesteps(run: Path) -> list[int]:
    return [t for (t,) in runs.open(run).sql("select timesteps from rounds order by round").fetchall()]


@pytest.mark.parametrize(
    ("checkpoint", "after", "steps"),
    [
        ("after_3", 3, 72),
        ("at_80_steps", 3, 80),  # in the middle of round 4
        ("at_96_steps", 3, 96),  # at the last step of round 4, whose update is still to come
        ("after_4", 4, 96),  # after it
        ("at_8_steps", 0, 8),
    ],
)
def test_rounds_that_the_model_has_not_seen_are_replaced(
    checkpoint: str, after: int, steps: int, trained_run: Path, run: Path
) -> None:
    model = load(trained_run, checkpoint)
    replaced = list(range(after + 1, 9))
    with pytest.warns(UserWarning, match=rf"^the model is that of round {after}: rounds {after + 1}-8 of .* replaced$"):
        entry = go_on(model, run, evaluate=lambda model, round: ([1.0], [1]))
    assert (entry["after_round"], entry["replaced_rounds"]) == (after, replaced)
    assert (entry["timesteps"], entry["timesteps_not_recorded"]) == (steps, steps - 24 * after)
    assert entry["changed"] == {}
    opened = runs.open(run)
    assert opened.rounds == opened.snapshot_rounds == list(range(1, after + 3))
    assert opened.evaluation_rounds == list(range(after + 3))
    assert timesteps(run) == [24 * n for n in range(1, after + 1)] + [steps + 24, steps + 48]
    ((episodes, numbers),) = opened.sql(
        "select count(distinct (episode, env)), count(distinct episode) from records"
    ).fetchall()
    assert episodes == numbers


def test_a_model_at_the_end_of_its_run_goes_on_without_a_word(trained_run: Path, run: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        entry = go_on(load(trained_run, "end"), run)
    assert (entry["after_round"], entry["replaced_rounds"], entry["timesteps_not_recorded"]) == (8, [], 0)
    assert timesteps(run) == [24 * n for n in range(1, 11)]


def test_training_without_the_run_is_said(trained_run: Path, run: Path) -> None:
    model = load(trained_run, "end")
    model.learn(72, reset_num_timesteps=False)
    with pytest.warns(UserWarning, match=r"trained beyond the run .*, in 72 time steps that are not recorded there$"):
        entry = go_on(model, run)
    assert (entry["after_round"], entry["timesteps_not_recorded"]) == (8, 72)
    assert timesteps(run)[7:] == [192, 288, 312]


def test_the_continued_rounds_are_those_of_the_uninterrupted_run(trained_run: Path, run: Path, tmp_path: Path) -> None:
    """Random drops are keyed by the round."""

    def dropped(path: Path, round: int) -> Any:
        query = f"select step from records where round = {round} and not kept order by step"
        return runs.open(path).sql(query).fetchall()

    with pytest.warns(UserWarning, match="with another rule than it began with"):
        go_on(load(trained_run, "after_3"), run, selection="random:0.9")
    model, other = load(trained_run, "after_3"), InfluenceCallback(run=tmp_path / "other", selection="random:0.9")
    model.learn(48, callback=other, reset_num_timesteps=False)
    assert runs.open(tmp_path / "other").rounds == [4, 5]
    assert dropped(run, 4) == dropped(tmp_path / "other", 4) != []


def test_settings_that_changed_are_said(trained_run: Path, run: Path) -> None:
    model = load(trained_run, "end")
    model.n_epochs = 1
    with pytest.warns(UserWarning, match="is continued with another rule, n_epochs than it began with"):
        entry = go_on(model, run, drop=0.5)
    assert entry["changed"] == {"rule": {"was": None, "is": "negative:0.5"}, "n_epochs": {"was": 2, "is": 1}}


# What is refused


def refused(model: Any, run: Path, message: str) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    weights = {name: p.clone() for name, p in model.policy.named_parameters()}
    with pytest.raises(RollsightError, match=message) as caught:
        model.learn(48, callback=InfluenceCallback(run=run), reset_num_timesteps=False)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("choose another place, or replace the run with overwrite=True")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert all((p == weights[name]).all() for name, p in model.policy.named_parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_steps": 48}, "n_steps 24, this one's is 48"),
        ({"n_envs": 2, "n_steps": 12}, "n_envs 1, this one's is 2"),
        ({"seed": 8}, "seed 7, this one's is 8"),
        ({"algo": "A2C"}, "algo 'ppo', this one's is 'a2c'"),
        ({"algo": "MaskablePPO"}, "algo 'ppo', this one's is 'maskableppo'"),
        ({"obs": "discrete"}, r"observation_space 'Box\(.*', this one's is 'Discrete\(5\)'"),
        ({"action": "box"}, r"action_space 'Discrete\(3\)', this one's is 'Box\("),
        (
            {"policy_kwargs": {"net_arch": [9]}},
            r"shape of mlp_extractor.policy_net.0.weight '8x3', this one's is '9x3'",
        ),
        (
            {"policy_kwargs": {"net_arch": [8, 8]}},
            r"shape of mlp_extractor.policy_net.2.weight None, this one's is '8x8'",
        ),
    ],
)
def test_another_model_is_refused_by_what_differs(settings: dict[str, Any], message: str, run: Path) -> None:
    model = make_model(**settings)
    model.learn(48)
    refused(model, run, f"is another model's \\({message}")


def test_another_environment_is_refused(tmp_path: Path) -> None:
    PPO("MlpPolicy", gym.make("CartPole-v1"), **SMALL).learn(48, callback=InfluenceCallback(run=tmp_path / "run"))
    other = PPO("MlpPolicy", gym.make("Acrobot-v1"), **{**SMALL, "n_steps": 32, "seed": 4})
    refused(other.learn(32), tmp_path / "run", r"\(env 'CartPole-v1', this one's is 'Acrobot-v1'\)")
    later = PPO("MlpPolicy", gym.make("CartPole-v0"), **SMALL)
    refused(later.learn(48), tmp_path / "run", r"\(env 'CartPole-v1', this one's is 'CartPole-v0'\)")


def test_a_run_of_another_host_is_refused(tmp_path: Path) -> None:
    runs.create(tmp_path / "run", {"host": "trl 1.0", "algo": "grpo"}).close()
    refused(make_model().learn(24), tmp_path / "run", "another model's .not of Stable-Baselines3.")


def test_overwrite_replaces_a_run_of_another_model(run: Path) -> None:
    model = make_model(n_steps=48)
    model.learn(48)
    model.learn(48, callback=InfluenceCallback(run=run, overwrite=True), reset_num_timesteps=False)
    assert runs.open(run).rounds == [2]
    assert "continued" not in runs.open(run).metadata


def test_a_run_that_began_in_the_middle_and_lost_its_first_round(tmp_path: Path) -> None:
    """Nothing is complete: rounds count from where the run began."""

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            raise KeyboardInterrupt

    model = make_model().learn(72)
    with pytest.raises(KeyboardInterrupt):
        model.learn(48, callback=[InfluenceCallback(run=tmp_path / "run"), Stop()], reset_num_timesteps=False)
    assert runs.open(tmp_path / "run").rounds == []
    with pytest.warns(UserWarning, match="in 24 time steps that are not recorded"):
        model.learn(48, callback=InfluenceCallback(run=tmp_path / "run"), reset_num_timesteps=False)
    assert runs.open(tmp_path / "run").rounds == [4, 5]
    assert timesteps(tmp_path / "run") == [120, 144]


def test_runs_written_before_updates_were_kept(trained_run: Path, run: Path) -> None:
    """Older runs say the time steps only."""
    for path in (run / "rounds").iterdir():
        pq.write_table(pq.read_table(path).drop_columns(["updates"]), path)
    with pytest.warns(UserWarning, match="the model is that of round 3"):
        assert go_on(load(trained_run, "after_3"), run)["after_round"] == 3


def test_a_run_whose_records_are_lost_goes_on(trained_run: Path, run: Path) -> None:
    for path in (run / "records").iterdir():
        path.unlink()
    go_on(load(trained_run, "end"), run)
    ((first,),) = runs.open(run).sql("select min(episode) from records").fetchall()
    assert first >= 192


def test_a2c_goes_on(tmp_path: Path) -> None:
    model = make_model(algo="A2C")
    model.learn(72, callback=InfluenceCallback(run=tmp_path / "run"))
    model.save(tmp_path / "model")
    loaded = A2C.load(tmp_path / "model", env=make_env(), device="cpu")
    loaded.learn(24, callback=InfluenceCallback(run=tmp_path / "run"), reset_num_timesteps=False)
    assert timesteps(tmp_path / "run") == [24, 48, 72, 96]
