"""`rollsight train` and `rollsight study`, as a user meets them. Rounds are shortened to keep the tests quick."""

import json
import sys

import numpy as np
import pytest

from rollsight import cli, runs
from rollsight.environments.make import make_environments
from rollsight.errors import RollsightError
from rollsight.training import run as training_run
from rollsight.training.paper import settings_for
from rollsight.training.run import RunSettings, run_training


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch):
    monkeypatch.setattr(training_run, "RECORDS_PER_ROUND", 256)


def columns(run, round, *names):
    table = run.records(round)
    return [np.asarray(table[name].to_numpy(zero_copy_only=False)) for name in names]


def test_train_writes_a_run_folder_that_top_and_sql_read(tmp_path, capsys):
    out = tmp_path / "lake"
    assert cli.main(["train", "FrozenLake-v1", "--rounds", "2", "--snapshots", "all", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "iif p=0.5, sgd at 0.005, 2 rounds" in printed
    assert str(out) in printed
    run = runs.open(out)
    assert run.rounds == [1, 2]
    assert run.snapshot_rounds == [1, 2]
    assert run.evaluation_rounds == [0, 1, 2]
    assert run.metadata["arm"] == "iif p=0.5"
    assert run.metadata["run_settings"]["rounds"] == 2
    dropped, negative = run.sql(
        "select count(*) filter (not kept), count(*) filter (score_return < 0) from records where round = 2"
    ).fetchall()[0]
    assert dropped == negative // 2 > 0
    (worst_kept,), (best_dropped,) = run.sql(
        "select min(score_return) from records where round = 2 group by kept order by kept desc"
    ).fetchall()
    assert best_dropped <= worst_kept

    assert cli.main(["top", str(out), "--round", "2", "--bottom", "--n", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    rows = rows if isinstance(rows, list) else rows["records"]
    assert len(rows) == 3
    assert cli.main(["top", str(out), "--round", "2", "--target", "action", "--record", "0:5"]) == 0
    assert "step 5" in capsys.readouterr().out


@pytest.mark.parametrize("engine", ["sb3", "compiled"])
def test_evaluation_does_not_touch_training(tmp_path, engine):
    """Same seed, same run: with and without evaluation, and the second time."""
    for name, episodes in {"none": 0, "some": 3, "again": 3}.items():
        run_training(
            RunSettings("CartPole-v1", rounds=3, eval_episodes=episodes, selection="negative:0.5", engine=engine),
            tmp_path / name,
        )
    reference = columns(runs.open(tmp_path / "none"), 3, "obs", "log_prob", "score_return", "kept")
    for name in ("some", "again"):
        for a, b in zip(
            columns(runs.open(tmp_path / name), 3, "obs", "log_prob", "score_return", "kept"), reference, strict=True
        ):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    some, again = (
        runs.open(tmp_path / name).sql("select * from evaluations order by all").fetchall()
        for name in ("some", "again")
    )
    assert some == again


def test_every_other_round_is_scored(tmp_path):
    run_training(
        RunSettings("CartPole-v1", rounds=3, every=2, selection="negative:1", eval_episodes=0, engine="sb3"),
        tmp_path / "run",
    )
    rows = runs.open(tmp_path / "run").sql("select round, scored, dropped from rounds order by round").fetchall()
    assert [(r, s, d > 0) for r, s, d in rows] == [(1, False, False), (2, True, True), (3, False, False)]


@pytest.mark.parametrize(("algo", "engine"), [("ppo", "compiled"), ("ppo", "sb3"), ("a2c", "sb3")])
def test_arms_share_the_first_buffer_and_random_drops_as_many(tmp_path, algo, engine):
    for rule in ("negative:0.5", "random:0.5"):
        settings = RunSettings(
            "CartPole-v1", algo=algo, rounds=2, seed=4, selection=rule, eval_episodes=0, envs=2, engine=engine
        )
        run_training(settings, tmp_path / rule)
    one, two = (runs.open(tmp_path / rule) for rule in ("negative:0.5", "random:0.5"))
    (score, kept), (other_score, other_kept) = (columns(run, 1, "score_return", "kept") for run in (one, two))
    assert np.array_equal(score, other_score)
    assert (~kept).sum() == (~other_kept).sum() > 0
    assert not np.array_equal(kept, other_kept)


def test_study_compares_arms_and_draws(tmp_path, capsys):
    out = tmp_path / "study"
    arguments = ["study", "FrozenLake-v1", "--seeds", "2", "--rounds", "1", "--envs", "8", "--eval-episodes", "2"]
    assert cli.main([*arguments, "--arms", "ppo", "iif", "--out", str(out), "--json"]) == 0
    (comparison,) = json.loads(capsys.readouterr().out)
    assert [(arm["name"], arm["runs"]) for arm in comparison["arms"]] == [("ppo", 2), ("iif", 2)]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["iif-seed0", "iif-seed1", "ppo-seed0", "ppo-seed1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "CartPole-v9000"], "CartPole-v1"),
        (["train", "CartPole-v1", "--drop", "1.5"], "--drop 1.5 is not a fraction"),
        (["train", "CartPole-v1", "--envs", "3"], "--envs 3 does not divide"),
        (["train", "CartPole-v1", "--rounds", "0"], "--rounds 0"),
        (["train", "CartPole-v1", "--lr", "-1"], "--lr -1.0"),
        (["train", "CartPole-v1", "--snapshots", "often"], "snapshots='often'"),
        (["study", "CartPole-v1", "--seeds", "0"], "seeds is 0"),
        (["study", "CartPole-v9000"], "CartPole-v1"),
        (["study", "CartPole-v1", "--drop", "2"], "--drop 2.0 is not a fraction"),
        (["study", "CartPole-v1", "--eval-episodes", "-1"], "--eval-episodes -1"),
        (["study", "CartPole-v1", "--first-seed", "-1"], "--first-seed -1 is not a seed"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_1(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not any(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("engine", ["compiled", "sb3"])
def test_a_run_that_diverges_says_so(engine, capsys, tmp_path):
    if engine == "compiled":
        pytest.importorskip("jax", reason="the compiled engine needs JAX")
    arguments = ["--rounds", "3", "--lr", "1e30", "--engine", engine, "--out", str(tmp_path / "run")]
    assert cli.main(["train", "CartPole-v1", *arguments]) == 1
    assert "training diverged: the update of round 1" in capsys.readouterr().err
    if engine == "compiled":  # the records that did it can be looked at
        assert len(runs.open(tmp_path / "run").rounds) == 1


def test_a_run_folder_that_exists_is_refused_unless_overwritten(tmp_path, capsys):
    out = tmp_path / "run"
    train = ["train", "CartPole-v1", "--rounds", "1", "--eval-episodes", "0", "--out", str(out)]
    assert cli.main(train) == 0
    before = runs.open(out).metadata["created"]
    assert cli.main([*train, "--seed", "1"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert runs.open(out).metadata["created"] == before
    assert cli.main([*train, "--seed", "1", "--overwrite"]) == 0
    assert runs.open(out).metadata["seed"] == 1


@pytest.mark.parametrize(
    ("env", "package"),
    [("MiniGrid-Empty-8x8-v0", "minigrid"), ("highway-v0", "highway_env"), ("ALE/Pong-v5", "ale_py")],
)
def test_a_missing_package_names_the_extra(env, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RollsightError, match=r"rollsight\[envs\]"):
        make_environments(env, 1)


def test_minigrid_trains_with_the_small_network(tmp_path):
    run_training(
        RunSettings("MiniGrid-Empty-5x5-v0", rounds=1, eval_episodes=1, selection="negative:0.5", engine="sb3"),
        tmp_path / "grid",
    )
    run = runs.open(tmp_path / "grid")
    (backend, dropped) = run.sql("select backend, dropped from rounds").fetchall()[0]
    assert backend == "layerwise"
    assert dropped > 0
    assert len(run.records(1)["obs"][0].as_py()) == 7 * 7 * 3


@pytest.mark.parametrize(
    ("settings", "engine"),
    [
        (RunSettings("CartPole-v1"), "compiled"),
        (RunSettings("CartPole-v1", engine="sb3"), "sb3"),
        (RunSettings("CartPole-v1", algo="a2c"), "sb3"),
        (RunSettings("CartPole-v1", optimizer="rmsprop"), "sb3"),
        (RunSettings("ALE/Pong-v5"), "sb3"),
    ],
)
def test_the_compiled_engine_is_the_default_where_it_can_be(settings, engine, monkeypatch):
    assert settings.resolved().engine == engine
    monkeypatch.setattr(training_run, "find_spec", lambda name: None)  # the extra is not installed
    assert settings.resolved().engine == "sb3"


def test_records_are_dropped_by_default_where_the_paper_dropped_some():
    assert settings_for("CartPole-v1").drop == 0 < settings_for("LunarLander-v3").drop < 1


@pytest.mark.parametrize(
    ("given", "lr"),
    [
        ({}, 5e-3),
        ({"optimizer": "adam"}, 3e-4),
        ({"optimizer": "rmsprop"}, 7e-4),
        ({"optimizer": "adam", "lr": 0.1}, 0.1),
        ({"env": "BipedalWalker-v3"}, 3e-4),
        ({"env": "BipedalWalker-v3", "optimizer": "sgd"}, 5e-3),
        ({"algo": "a2c"}, 7e-4),
    ],
)
def test_the_learning_rate_is_the_optimisers(given, lr):
    assert RunSettings(**{"env": "CartPole-v1", **given}).resolved().lr == lr
