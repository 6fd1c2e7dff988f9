"""What each host really writes is in the schema, and what the schema says a host writes is written."""

from fnmatch import fnmatchcase
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollsight import runs
from rollsight.runs import schema

pytestmark = pytest.mark.filterwarnings("ignore")


def of_sb3(folder, monkeypatch):
    pytest.importorskip("sb3_contrib")
    from sb3_zoo import make_model, noisy_evaluation

    from rollsight.adapters.sb3 import InfluenceCallback

    models = {
        "plain": make_model(n_envs=2, normalize=True),
        "masked": make_model("MaskablePPO", obs="dict"),
        "box masked": make_model("MaskablePPO"),
    }
    for name, model in models.items():
        influence = InfluenceCallback(drop=0.5, run=folder / name, snapshots="all", evaluate=noisy_evaluation)
        model.learn(72, callback=influence)
        yield folder / name


def of_replay(folder, monkeypatch):
    from functools import partial

    from off_policy_zoo import make_model, toy

    from rollsight.adapters.sb3_off_policy import ReplayInfluenceCallback

    for name, algo, obs in (("plain", "DQN", "box"), ("dictionary", "SAC", "dict")):
        watch = ReplayInfluenceCallback(20, episodes=2, make_env=partial(toy, algo, obs), run=folder / name)
        make_model(algo, obs, n_envs=2).learn(100, callback=watch)
        yield folder / name


def of_compiled(folder, monkeypatch):
    pytest.importorskip("jax", reason="the compiled engine needs JAX (pip install 'rollsight[fast]')")
    from rollsight.training import run

    monkeypatch.setattr(run, "RECORDS_PER_ROUND", 256)
    settings = run.RunSettings("CartPole-v1", engine="compiled", rounds=2, eval_episodes=2, selection="negative:0.5")
    run.run_training(settings, folder / "run")
    yield folder / "run"


def of_trl(folder, monkeypatch):
    pytest.importorskip("trl")
    from trl_zoo import trainer

    from rollsight.adapters.trl import attach

    trained = trainer(folder / "out")
    attach(trained, drop=0.5, run=folder / "run")
    trained.train()
    yield folder / "run"


def of_rlhf(folder, monkeypatch):
    pytest.importorskip("peft", reason="language models need PEFT (pip install 'rollsight[llm]')")
    from language_trainer import PROMPTS, options, vowels

    from rollsight.training.language import rewards, run

    (folder / "prompts.txt").write_text("\n".join(PROMPTS), "utf-8")
    monkeypatch.setattr(rewards, "load", lambda *_: vowels)
    given = {"options": options(), "rounds": 2, "lora_rank": 2, "eval_prompts": 2, "eval_every": 1}
    run.train(run.RunSettings("miniature", str(folder / "prompts.txt"), "test", **given), folder / "run")
    yield folder / "run"


def of_own(folder, monkeypatch):
    import torch
    from test_recorder import grid, policy_and_records, scored

    import rollsight as rs

    for dictionary in (False, True):
        policy, records, entropy = policy_and_records(dictionary=dictionary)
        with rs.runs.Recorder(folder / f"steps {dictionary}", env="CartPole-v1") as recorder:
            more = {"columns": {"entropy": entropy, "episode_start": ["{}"] * len(records)}}
            given = *scored(policy, records), grid(*[[1, 0]] * 6), {}
            recorder.round(records, *given, **more, trust=rs.trust_line(policy, records, seed=0))
        yield recorder.path
    tokens, numbers = torch.arange(6).reshape(2, 3), torch.ones(2, 3)
    more = {"values": numbers, "rewards": numbers, "ids": {"group": [0, 0]}}
    with rs.runs.Recorder(folder / "sequences") as recorder:
        texts = {"prompt": ["a"] * 2, "completion": ["b"] * 2}
        recorder.round(rs.Records(tokens, tokens, -numbers, numbers, **more), columns=texts)
    yield recorder.path


HOSTS = {"sb3": of_sb3, "replay": of_replay, "compiled": of_compiled, "trl": of_trl, "rlhf": of_rlhf, "own": of_own}


def is_of(type, stored):
    """Whether an Arrow type is the one that the schema names; a column of nulls is of any."""
    if pa.types.is_null(stored):
        return True
    if type == "array":
        return (
            is_of("integer", stored) or is_of("number", stored) or is_of("array", getattr(stored, "value_type", None))
        )
    if type in ("integers", "numbers", "texts"):
        return pa.types.is_list(stored) and is_of(type.removesuffix("s"), stored.value_type)
    checks = {
        "integer": pa.types.is_integer,
        "number": pa.types.is_floating,
        "boolean": pa.types.is_boolean,
        "text": pa.types.is_string,
    }
    return stored is not None and checks[type](stored)


def test_every_host_has_a_run():
    assert set(HOSTS) == set(get_args(schema.Host))


@pytest.mark.parametrize("host", HOSTS)
def test_the_schema_is_what_a_host_writes(host, tmp_path, monkeypatch):
    by_default = [table for table in schema.TABLES if table != "findings"]  # of runs that the doctor watched
    written = {table: {} for table in by_default}
    for path in HOSTS[host](tmp_path, monkeypatch):
        run = runs.open(path)
        assert run.metadata["schema"] == schema.SCHEMA
        for table in by_default:
            for round in run.evaluation_rounds if table == "evaluations" else run.rounds:
                stored = pq.read_schema(path / table / f"round-{round:06d}.parquet")
                written[table] |= {
                    (name, str(stored.field(name).type)): stored.field(name).type for name in stored.names
                }
    for table, columns in written.items():
        for (name, _), stored in columns.items():
            column = schema.column_of(table, name)
            assert column is not None, f"{table}.{name} is not in the schema"
            assert host in column.hosts, f"{table}.{name} is not said to be written by {host}"
            assert is_of(column.type, stored), f"{table}.{name} is {stored}, not {column.type}"
        names = {name for name, _ in columns}
        for column in schema.TABLES[table]:
            if host in column.hosts:
                assert any(fnmatchcase(name, column.name) for name in names), f"{host} does not write {column.name}"


@pytest.mark.parametrize("table", schema.TABLES)
def test_every_column_is_said_once_and_said_in_full(table):
    columns = schema.TABLES[table]
    assert len({column.name for column in columns}) == len(columns)
    for column in columns:
        assert column.meaning
        assert column.hosts
        assert "|" not in column.unit + column.meaning  # they stand in a table of the docs
        assert schema.column_of(table, column.name.replace("*", "x")) == column
    assert schema.column_of(table, "no such column") is None


def test_new_names_of_renamed_columns_are_in_the_schema():
    for tables in schema.RENAMED.values():
        for table, names in tables.items():
            assert all(schema.column_of(table, new) for new in names.values())
