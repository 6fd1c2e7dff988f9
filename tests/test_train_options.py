"""The options of `rollsight train`: each reaches the update, each wrong value is one sentence before anything else."""

from __future__ import annotations

import json
import shlex
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

from rollsight import RollsightError, cli, runs
from rollsight.errors import OptionError
from rollsight.training.engines import host_environments
from rollsight.training.evaluation import Evaluation
from rollsight.training.models import model_of
from rollsight.training.run import RunSettings, run_training

SHORT: dict[str, Any] = {"rounds": 2, "n_steps": 64, "batch_size": 16, "epochs": 2, "eval_episodes": 0}


def model(**settings: Any) -> Any:
    resolved = RunSettings(**{"env": "CartPole-v1", **settings}).resolved()
    return model_of(resolved, host_environments(resolved))


def test_every_option_reaches_the_host() -> None:
    made = model(
        engine="sb3",
        n_steps=96,
        envs=2,
        batch_size=48,
        epochs=3,
        gamma=0.9,
        gae_lambda=0.8,
        clip=0.1,
        ent_coef=0.01,
        vf_coef=0.7,
        max_grad_norm=0.25,
        net="32,16",
        lr=0.002,
        optimizer="adam",
        seed=5,
    )
    assert isinstance(made, PPO)
    assert (made.n_steps, made.n_envs, made.batch_size, made.n_epochs) == (96, 2, 48, 3)
    assert (made.gamma, made.gae_lambda, made.clip_range(1.0)) == (0.9, 0.8, 0.1)
    assert (made.ent_coef, made.vf_coef, made.max_grad_norm, made.seed) == (0.01, 0.7, 0.25, 5)
    assert [p.shape[0] for n, p in made.policy.named_parameters() if n.endswith("policy_net.0.weight")] == [32]
    assert [p.shape[0] for n, p in made.policy.named_parameters() if n.endswith("value_net.2.weight")] == [16]
    assert made.lr_schedule(1.0) == 0.002
    assert isinstance(made.policy.optimizer, torch.optim.Adam)
    a2c = model(algo="a2c", gae_lambda=0.9, ent_coef=0.02, n_steps=32)
    assert isinstance(a2c, A2C)
    assert (a2c.n_steps, a2c.gae_lambda, a2c.ent_coef) == (32, 0.9, 0.02)


def test_defaults_are_the_hosts_and_the_papers() -> None:
    ours, theirs = model(), PPO("MlpPolicy", "CartPole-v1", device="cpu")
    for name in ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.clip_range(1.0) == theirs.clip_range(1.0)
    assert model(algo="a2c").gae_lambda == A2C("MlpPolicy", "CartPole-v1", device="cpu").gae_lambda


@pytest.mark.parametrize("engine", ["sb3", "compiled"])
def test_the_command_line_keeps_them_in_the_run(engine: str, tmp_path: Path) -> None:
    if engine == "compiled":
        pytest.importorskip("jax", reason="the compiled engine needs JAX")
    out = tmp_path / "run"
    options = {"steps": "200", "n-steps": "64", "batch-size": "16", "epochs": "2", "gamma": "0.9", "gae-lambda": "0.8"}
    options |= {"clip": "0.1", "ent-coef": "0.01", "vf-coef": "0.7", "max-grad-norm": "inf", "net": "8,4"}
    options |= {"env-kwargs": '{"is_slippery": false}', "eval-episodes": "1", "engine": engine, "out": str(out)}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    assert cli.main(["train", "FrozenLake-v1", *words]) == 0
    run = runs.open(out)
    assert run.rounds == [1, 2, 3, 4]  # 200 steps fill three rounds of 64 and begin a fourth
    kept = run.metadata["run_settings"]
    assert (kept["clip"], kept["net"], kept["env_kwargs"]) == (0.1, "8,4", {"is_slippery": False})
    host = run.metadata["settings"]
    assert (host["n_steps"], host["batch_size"], host["n_epochs"], host["gamma"]) == (64, 16, 2, 0.9)
    assert (host["gae_lambda"], host["ent_coef"], host["vf_coef"], host["clip_range"]) == (0.8, 0.01, 0.7, 0.1)
    assert run.metadata["env_kwargs"]["is_slippery"] is False
    assert RunSettings.of_run(out) == RunSettings.of_run(out).resolved()
    assert RunSettings.of_run(out).max_grad_norm == float("inf")
    # Without slipping, moving down from the start ends one row below, every time.
    obs, actions = (np.array(run.records(1)[name].to_pylist()) for name in ("obs", "action"))
    following = obs[1:][(obs[:-1] == 0) & (actions[:-1] == 1)]
    assert len(following) > 2
    assert set(following.tolist()) == {4}


def test_normalisation_is_of_training_and_returns_are_the_environments(tmp_path: Path) -> None:
    settings = RunSettings("Pendulum-v1", normalize=True, **{**SHORT, "eval_episodes": 1})
    assert settings.resolved().engine == "sb3"
    run_training(settings, tmp_path / "run")
    run = runs.open(tmp_path / "run")
    assert run.metadata["env_wrappers"] == ["VecNormalize"]
    returns = [value for (value,) in run.sql("select return from evaluations").fetchall()]
    assert all(value < -100 for value in returns)  # of the environment, not normalised
    environments = host_environments(settings.resolved())
    assert isinstance(unwrap_vec_normalize(environments), VecNormalize)
    environments.close()


def test_evaluation_sees_with_trainings_statistics_and_leaves_them() -> None:
    settings = RunSettings("Pendulum-v1", normalize=True, **{**SHORT, "eval_episodes": 1}).resolved()
    with closing(host_environments(settings)) as environments, closing(Evaluation(settings)) as evaluation:
        made = model_of(settings, environments)
        normalizer = made.get_vec_normalize_env()
        assert normalizer is not None
        statistics = normalizer.obs_rms
        assert isinstance(statistics, RunningMeanStd)
        statistics.mean = np.full(3, 1000.0)
        seen: list[torch.Tensor] = []
        made.policy.features_extractor.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        evaluation(made, 1)
    assert all(bool((obs == -normalizer.clip_obs).all()) for obs in seen)
    assert len(seen) > 10
    assert (statistics.mean == 1000).all()


WRONG: dict[str, tuple[list[str], str]] = {
    "snapshots": (["--snapshots", "often"], "often"),
    "seed": (["--seed", "-1"], "--seed -1 is not a seed"),
    "large seed": (["--seed", str(2**32)], "--seed 4294967296 is not a seed"),
    "drop": (["--drop", "2"], "--drop 2.0 is not a fraction"),
    "drop nan": (["--drop", "nan"], "--drop nan is not a fraction"),
    "evaluation": (["--eval-episodes", "-1"], "--eval-episodes -1 is not a whole number of at least 0"),
    "every": (["--every", "0"], "every"),
    "lr": (["--lr", "nan"], "--lr nan is not a positive number"),
    "gamma": (["--gamma", "1.5"], "--gamma 1.5 is outside 0 to 1"),
    "lambda": (["--gae-lambda", "-0.1"], "--gae-lambda -0.1 is outside"),
    "clip": (["--clip", "0"], "--clip 0.0 is not a positive number"),
    "entropy": (["--ent-coef", "inf"], "--ent-coef inf is not a weight"),
    "epochs": (["--epochs", "0"], "--epochs 0 is not a whole number of at least 1"),
    "batch": (["--batch-size", "4096"], "--batch-size 4096 is more than the 2048 records"),
    "whole batch": (["--batch-size", "2048", "--drop", "0.5"], "--batch-size 2048 takes all"),
    "net": (["--net", "64,x"], "--net 64,x is not a list of layer widths"),
    "two lengths": (["--steps", "2048", "--rounds", "3"], "--steps 2048 and --rounds 3"),
    "no JSON": (["--env-kwargs", "{no}"], "--env-kwargs {no} is not JSON"),
    "no object": (["--env-kwargs", "[1]"], "--env-kwargs [1] is not a JSON object"),
    "unknown keyword": (["--env-kwargs", '{"gravity_": 1}'], "gravity_"),
    "a2c compiled": (["--algo", "a2c", "--engine", "compiled"], "--algo a2c is not covered by the compiled engine"),
    "normalize compiled": (["--normalize", "--engine", "compiled"], "--normalize is not covered"),
    "a2c clip": (["--algo", "a2c", "--clip", "0.1"], "--clip 0.1 is PPO's"),
    "taken": (["--out", "taken"], "--out taken is not empty and not a run"),
    "file": (["--out", "file"], "--out file is a file"),
    "resume": (["--resume", "taken"], "leave out ENV"),
}


@pytest.mark.parametrize(("words", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_setting_is_one_sentence_and_nothing_else(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    assert cli.main(["train", "CartPole-v1", *words]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert said in printed.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "taken", "thesis.txt"]


def test_an_environment_that_does_not_fit_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 1
    assert "name the environment" in capsys.readouterr().err
    assert cli.main(["train", "CartPole-v9000"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "CartPole-v1" in printed.err
    assert cli.main(["train", "Blackjack-v1"]) == 1  # observations that a network takes in no way
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1


def test_python_names_the_argument() -> None:
    with pytest.raises(OptionError, match=r"^eval_episodes=-1 is not a whole number"):
        RunSettings("CartPole-v1", eval_episodes=-1).resolved()
    with pytest.raises(RollsightError, match=r"engine='sb3'"):
        RunSettings("CartPole-v1", normalize=True, engine="compiled").resolved()


def test_the_last_line_pastes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sp ace's run"
    words = ["--rounds", "1", "--n-steps", "64", "--eval-episodes", "0", "--out", str(out)]
    assert cli.main(["train", "CartPole-v1", "--engine", "sb3", *words]) == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("what hurt most: ")
    assert cli.main([*shlex.split(command)[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert shlex.split(command)[2] == str(out)


def test_help_shows_no_types_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    printed = capsys.readouterr().out
    assert "None" not in printed
    assert "|STR" not in printed
    assert "--net 64,64" in printed
    assert "Discount factor" in printed
