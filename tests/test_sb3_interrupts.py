"""`learn` was interrupted, or raised: what the model, the next `learn` and the run folder are then."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_zoo import AtRolloutEnd, fingerprint, make_env, make_model, trained
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

import rollsight.adapters.sb3.selecting
from rollsight import RollsightError, runs
from rollsight.adapters.sb3 import InfluenceCallback

ALGORITHMS = ("PPO", "A2C", "TRPO", "MaskablePPO", "RecurrentPPO")
PLACES = ("rollout", "environment", "before training", "training", "scoring")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*no snapshots are taken", "ignore:.*not recorded there", "ignore:.*other settings"
)


class In(BaseCallback):
    """Raises at one place of round 2, at which `model.num_timesteps` is 24 to 48."""

    def __init__(self, place: str, error: BaseException) -> None:
        super().__init__()
        self.place, self.error, self.undo = place, error, lambda: None

    def _on_step(self) -> bool:
        if self.num_timesteps >= 40 and self.place == "rollout":
            self.fail()
        if self.num_timesteps >= 40 and self.place == "environment":
            self.replace(self.model.env.envs[0], "step", self.fail)  # type: ignore[attr-defined]
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= 24 and self.place == "scoring":
            self.replace(rollsight.adapters.sb3.selecting, "score_records", self.fail)

    def _on_rollout_end(self) -> None:
        if self.num_timesteps >= 40 and self.place == "before training":
            self.fail()
        if self.num_timesteps >= 40 and self.place == "training":
            optimizer, steps = self.model.policy.optimizer, []  # type: ignore[union-attr]
            step = optimizer.step

            def second(*args: Any, **keywords: Any) -> Any:
                steps.append(1)
                return self.fail() if len(steps) == 2 else step(*args, **keywords)

            if type(self.model).__name__ == "A2C":
                steps.append(1)
            self.replace(optimizer, "step", second)

    def replace(self, owner: Any, name: str, by: Any) -> None:
        before, own = getattr(owner, name), name in vars(owner)
        setattr(owner, name, by)
        self.undo = lambda: setattr(owner, name, before) if own else delattr(owner, name)

    def fail(self, *_: Any, **__: Any) -> Any:
        self.undo()
        raise self.error


def interrupted(callback: Any, place: str, algo: str = "PPO", error: BaseException | None = None) -> Any:
    """A model whose `learn` ended in its second round."""
    model, stop = make_model(algo=algo), In(place, KeyboardInterrupt() if error is None else error)
    with pytest.raises(type(stop.error)):
        model.learn(96, callback=[one for one in (callback, stop) if one is not None])
    return model


def is_the_hosts(model: Any) -> bool:
    """Whether buffer and optimiser are as a model without a callback has them."""
    own = type(model.rollout_buffer).__module__.split(".")[0] in ("stable_baselines3", "sb3_contrib")
    return own and not model.policy.optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize(
    ("algo", "place"), [*(("PPO", place) for place in PLACES), *((algo, "training") for algo in ALGORITHMS[1:])]
)
def test_learning_goes_on_without_the_callback_as_if_it_had_not_been_there(place: str, algo: str) -> None:
    def gone_on(callback: Any, place: str) -> dict[str, bytes]:
        model = interrupted(callback, place, algo)
        model.learn(48, reset_num_timesteps=False)
        assert is_the_hosts(model)
        return fingerprint(model)

    stock = gone_on(None, "before training" if place == "scoring" else place)
    assert gone_on(InfluenceCallback(drop=0.0, snapshots="all"), place) == stock


@pytest.mark.parametrize("place", ["rollout", "environment", "scoring"])
def test_nothing_is_on_the_model_outside_of_an_update(place: str) -> None:
    assert is_the_hosts(interrupted(InfluenceCallback(drop=0.9), place))


def test_dropped_records_do_not_outlive_an_interrupted_update() -> None:
    """A plain `learn` after an update that was broken off trains on everything."""
    sizes: list[int] = []
    model = interrupted(InfluenceCallback(drop=0.9), "training")
    plain = model.policy.evaluate_actions

    def evaluate_actions(obs: Any, actions: Any) -> Any:
        sizes.append(len(actions))
        return plain(obs, actions)

    model.policy.evaluate_actions = evaluate_actions
    model.learn(24, reset_num_timesteps=False)
    assert sizes == [8] * 6


def test_copies_and_files_hold_the_hosts_own_buffer(tmp_path: Path) -> None:
    model = interrupted(InfluenceCallback(drop=0.9, snapshots="all"), "training")
    assert not is_the_hosts(model)  # nobody was called
    kind = type(make_model().rollout_buffer)
    for other in (copy.deepcopy(model.rollout_buffer), pickle.loads(pickle.dumps(model.rollout_buffer))):
        assert type(other) is kind
        assert set(vars(other)) == set(vars(make_model().rollout_buffer))
        assert np.array_equal(other.rewards, model.rollout_buffer.rewards)
    assert not pickle.loads(pickle.dumps(model.policy.optimizer))._optimizer_step_post_hooks
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=make_env(), device="cpu")
    assert is_the_hosts(loaded)
    loaded.learn(24)


def test_a_with_block_leaves_everything_at_once(tmp_path: Path) -> None:
    model = make_model()
    with (
        pytest.raises(KeyboardInterrupt),
        InfluenceCallback(drop=0.9, run=tmp_path / "run", snapshots="all") as influence,
    ):
        model.learn(96, callback=[influence, In("training", KeyboardInterrupt())])
    assert is_the_hosts(model)
    assert runs.open(tmp_path / "run").rounds == [1]
    assert written_by_another_process(tmp_path / "run")


def test_a_with_block_keeps_the_round_whose_update_failed(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="no memory"),
        InfluenceCallback(run=tmp_path / "run") as influence,
    ):
        make_model().learn(96, callback=[influence, In("training", RuntimeError("no memory"))])
    run = runs.open(tmp_path / "run")
    assert run.rounds == [1, 2]
    ((said,),) = run.sql("select warnings from rounds where round = 2").fetchall()
    assert "before the update was over (RuntimeError: no memory)" in said
    assert run.records(2).num_rows == 24


def written_by_another_process(path: Path) -> bool:
    code = f"from rollsight import runs; runs.resume({str(path)!r}).close()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


# The run folder


@pytest.mark.parametrize("place", PLACES)
def test_a_notebook_goes_on_in_its_run(place: str, tmp_path: Path) -> None:
    """The same cells again, with a new callback, while the old one is still referenced."""
    old = InfluenceCallback(run=tmp_path / "nb", snapshots="all")
    model = interrupted(old, place)
    lost = model.num_timesteps - 24
    new = InfluenceCallback(run=tmp_path / "nb", snapshots="all")
    model.learn(48, callback=new, reset_num_timesteps=False)
    run = runs.open(tmp_path / "nb")
    assert run.rounds == run.snapshot_rounds == [1, 2, 3]
    steps = run.sql("select timesteps from rounds order by round").fetchall()
    assert steps == [(24,), (48 + lost,), (72 + lost,)]
    (entry,) = run.metadata["continued"]
    assert (entry["after_round"], entry["replaced_rounds"], entry["timesteps_not_recorded"]) == (1, [], lost)
    assert entry["timesteps"] == 24 + lost
    assert old.round in (1, 2)
    assert is_the_hosts(model)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_same_callback_goes_on_in_its_run(algo: str, tmp_path: Path) -> None:
    influence = InfluenceCallback(run=tmp_path / "run", drop=0.5)
    model = interrupted(influence, "training", algo)
    model.learn(48, callback=influence, reset_num_timesteps=False)
    assert runs.open(tmp_path / "run").rounds == [1, 2, 3]
    assert is_the_hosts(model)


@pytest.mark.parametrize("place", PLACES)
def test_another_model_takes_the_folder(place: str, tmp_path: Path) -> None:
    old = InfluenceCallback(run=tmp_path / "run")
    model = interrupted(old, place)
    with pytest.raises(RollsightError, match=r"replace it with overwrite=True$"):
        trained({}, InfluenceCallback(run=tmp_path / "run"))
    trained({}, InfluenceCallback(run=tmp_path / "run", overwrite=True), rounds=1)
    assert runs.open(tmp_path / "run").rounds == [1]
    assert model.num_timesteps > 24


def test_a_callback_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    model = interrupted(InfluenceCallback(run=tmp_path / "run", snapshots="all"), "training")
    gc.collect()
    assert written_by_another_process(tmp_path / "run")
    model.learn(24, callback=InfluenceCallback(run=tmp_path / "run"), reset_num_timesteps=False)
    assert runs.open(tmp_path / "run").rounds == [1, 2]


def test_a_writer_that_was_taken_over_does_not_stop_training(tmp_path: Path) -> None:
    """Two models write to one run in turns, as two notebook cells may: the later one has it."""
    other = make_model()

    def steal(_: Any) -> None:
        if not thief.round:
            other.learn(24, callback=thief)

    thief = InfluenceCallback(run=tmp_path / "run", overwrite=True)
    model, summaries = make_model(), list[Any]()
    influence = InfluenceCallback(run=tmp_path / "run", on_round=summaries.append)
    with pytest.warns(UserWarning, match="a later writer of this process has taken over the run"):
        model.learn(72, callback=[influence, AtRolloutEnd(steal)])
    assert model.num_timesteps == 72
    assert [round["scored"] for round in summaries] == [True] * 3
    assert json.loads((tmp_path / "run" / "run.json").read_text())["algo"] == "ppo"
    assert torch.isfinite(torch.tensor(summaries[-1]["update_norm"]))
