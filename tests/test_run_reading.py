"""What is asked of run folders in all: data frames, whether something changed, what is missing."""

from __future__ import annotations

import builtins
import sys

import numpy as np
import pytest

import rollsight as rs
from rollsight import runs
from rollsight.runs import episode_rows
from rollsight.runs.completeness import completeness

N = 12
SCORES = np.array([0.5, -0.5, np.nan, 2.0, -3.0, 0.0, 1.0, -1.0, 4.0, -2.0, 0.25, 3.0])


def write(path, rounds=2, **metadata):
    with runs.create(path, {"host": "own", **metadata}) as writer:
        for round in range(1, rounds + 1):
            columns = {
                "round": [round] * N,
                "action": np.arange(N) % 3,
                "score_return": SCORES * round,
                "kept": SCORES > -1,
                "valid": np.ones(N, bool),
                "completion": [None if i == 3 else f"<b>{'Paris' if i % 2 else 'rome'} {i}</b>" for i in range(N)],
                "obs": np.arange(2.0 * N).reshape(N, 2),
            }
            writer.write_records(round, columns)
            writer.write_round(round, {"records": N, "return_mean": float(round)})
    return path


@pytest.fixture
def run(tmp_path):
    return runs.open(write(tmp_path / "run"))


def test_frames(run, tmp_path):
    pytest.importorskip("pandas")
    records = run.to_pandas("records")
    assert len(records) == 2 * N
    assert records["round"].tolist() == [1] * N + [2] * N
    assert run.frame("records", rounds=[2], columns=["score_return"])["score_return"].iloc[3] == 4.0
    assert run.frame("rounds")["return_mean"].tolist() == [1.0, 2.0]
    top = run.top(2, "return", lowest=True)
    assert top["score"].tolist() == [-6.0, -4.0]
    assert top["rank"].tolist() == [1, 2]
    assert run.frame("evaluations", as_="arrow").num_rows == 0
    with pytest.raises(rs.RollsightError, match="there is no table 'run'"):
        run.frame("run")
    with pytest.raises(rs.RollsightError, match=r"round 7 of .* has no records"):
        run.frame("records", rounds=[7])


def test_polars(run):
    polars = pytest.importorskip("polars")
    frame = run.frame("rounds", as_="polars")
    assert isinstance(frame, polars.DataFrame)
    assert frame["return_mean"].to_list() == [1.0, 2.0]


def test_a_library_that_is_not_installed_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(rs.RollsightError, match="needs the package polars, which is not installed: pip install polars"):
        run.frame("rounds", as_="polars")
    with pytest.raises(rs.RollsightError, match="as_='excel' is not a kind of data frame"):
        run.frame("rounds", as_="excel")


def test_a_run_that_changed_has_another_token(tmp_path):
    path = write(tmp_path / "run")
    before = runs.change_token(path)
    assert runs.change_token(path) == before
    with runs.resume(path) as writer:
        writer.write_round(3, {"records": 0})
    assert runs.change_token(path) not in (before, runs.change_token(tmp_path / "absent"))


def test_records_are_not_read_twice(run, monkeypatch):
    first = episode_rows.records(run, 1)
    monkeypatch.setattr(builtins, "open", None)
    monkeypatch.setattr(runs.Run, "records", None)
    assert episode_rows.records(run, 1) is first
    assert first["row"].to_pylist() == list(range(N))


def test_completeness(tmp_path):
    run = runs.open(write(tmp_path / "run", rounds=4))
    found = completeness(run)
    assert (found.state, found.complete, found.whole) == ("ended", (1, 2, 3, 4), True)
    assert (found.rows, found.expected) == (4 * N, 4 * N)

    (run.path / "records" / "round-000002.parquet").unlink()
    (run.path / "records" / "round-000003.parquet").write_bytes(b"PAR1")
    found = completeness(run)
    assert found.missing == {"records": (2,)}
    assert list(found.unreadable) == [3]
    assert (found.rows, found.expected, found.whole) == (2 * N, 4 * N, False)


def test_whether_somebody_writes(tmp_path):
    path = write(tmp_path / "run", rounds=1)
    with runs.resume(path) as writer:
        writer.write_records(2, {"round": [2]})
        found = completeness(runs.open(path))
        assert (found.state, found.complete, found.in_flight) == ("writing", (1,), (2,))
    assert completeness(runs.open(path)).state == "stopped in a round"
    runs.resume(path).close()
    assert completeness(runs.open(path)).state == "ended"


@pytest.mark.parametrize(
    ("name", "metadata", "arm"),
    [
        ("worst-3", {"seed": 3}, "worst"),
        ("worst-3", {"seed": 4}, "worst-3"),
        ("worst-3", {}, "worst-3"),
        ("worst-3", {"seed": 3, "arm": "iif"}, "iif"),
        ("-3", {"seed": 3}, "-3"),
    ],
)
def test_the_arm_of_a_run_is_its_name_without_its_seed_unless_it_is_given(tmp_path, name, metadata, arm):
    with runs.create(tmp_path / name, metadata):
        pass
    assert runs.open(tmp_path / name).arm == arm
