"""Columns of a run folder: one name for one meaning, also in runs that were written under other names."""

import json

import pytest

from rollsight import runs
from rollsight.analysis.learning_curves import training_curve
from rollsight.cli import main
from rollsight.runs.metadata import write_metadata

OF_RLHF = {"tokens": [[3, 4], [5]], "log_probs": [[-1.0, -2.0], [-3.0]], "length": [2, 1]}
NOW_OF_RLHF = {"token_ids": [[3, 4], [5]], "token_log_probs": [[-1.0, -2.0], [-3.0]], "length": [2, 1]}
CASES = {
    "trl": ("trl 1.0, transformers 5.0", {"tokens": [7, 9]}, {"length": [7, 9]}, "reward_mean"),
    "rlhf": ("rollsight", OF_RLHF, NOW_OF_RLHF, "return_mean"),
}


@pytest.fixture(params=CASES)
def old(request, tmp_path):
    """A run of schema 1 with two rounds, and what its records hold under the names of today."""
    host, records, now, mean = CASES[request.param]
    with runs.create(tmp_path / "run", {"host": host}) as writer:
        for round in (1, 2):
            writer.write_records(round, {"round": [round] * 2, **records, "score_return": [0.5, -0.5]})
            writer.write_round(round, {mean: float(round)})
    as_of_schema_1(writer.path)
    return writer.path, now


def as_of_schema_1(path):
    metadata = json.loads((path / "run.json").read_text("utf-8"))
    assert metadata.pop("schema") == 2
    metadata.pop("sha256")
    write_metadata(path, metadata)


def test_old_runs_are_read_under_the_names_of_today(old):
    path, now = old
    run = runs.open(path)
    assert run.records(2).to_pydict() == {"round": [2, 2], **now, "score_return": [0.5, -0.5]}
    assert run.targets(2) == ["return"]
    assert run.rows("rounds", ["round", "reward_mean"]).to_pydict() == {"round": [1, 2], "reward_mean": [1.0, 2.0]}
    assert run.sql("select * from records where round = 2").to_arrow_table().to_pydict() == run.records(2).to_pydict()
    assert run.sql("select reward_mean from rounds order by round").fetchall() == [(1.0,), (2.0,)]
    assert training_curve(run).returns.tolist() == [1.0, 2.0]
    assert main(["check", str(path)]) == 0


def test_an_old_run_that_is_continued_has_one_column_of_each_meaning(old):
    path, now = old
    with runs.resume(path) as writer:
        writer.write_records(3, {"round": [3, 3], **now, "score_return": [0.5, -0.5]})
        writer.write_round(3, {"reward_mean": 3.0})
    run = runs.open(path)
    table = run.sql("select * from records order by round").to_arrow_table()
    assert set(table.column_names) == {"round", *now, "score_return"}
    assert all(table[name].to_pylist() == 3 * values for name, values in now.items())
    assert run.rows("rounds", ["reward_mean"])["reward_mean"].to_pylist() == [1.0, 2.0, 3.0]
    assert run.sql("select reward_mean from rounds order by round").fetchall() == [(1.0,), (2.0,), (3.0,)]


def test_other_runs_keep_their_columns(tmp_path):
    for host in ("stable-baselines3 2.7", "rollsight"):
        with runs.create(tmp_path / "run", {"host": host}, overwrite=True) as writer:
            writer.write_records(1, {"tokens": [1]})
            writer.write_round(1, {"return_mean": 1.0})
        if host != "rollsight":  # what the language trainer wrote then is known; others' columns are their own
            as_of_schema_1(writer.path)
        run = runs.open(writer.path)
        assert run.records(1).column_names == ["tokens"]
        assert run.sql("select return_mean from rounds").fetchall() == [(1.0,)]
