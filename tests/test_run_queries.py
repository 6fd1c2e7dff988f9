"""What a viewer asks of run folders: data frames, pages of records, one line a run, what is missing."""

from __future__ import annotations

import builtins
import sys

import numpy as np
import pytest

import rollsight as rs
from rollsight import runs
from rollsight.runs import queries
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


def rows_of(page, name="row"):
    return page.rows[name].to_pylist()


def test_a_page_is_a_part_of_what_the_filter_leaves(run):
    page = queries.page(run, 1, [("kept", "=", True)], [("score_return", "descending")], 1, 3)
    assert (page.matching, page.records) == (8, N)
    assert rows_of(page) == [11, 3, 6]
    assert rows_of(page, "score_return") == [3.0, 2.0, 1.0]
    assert rows_of(page, "obs") == [[22.0, 23.0], [6.0, 7.0], [12.0, 13.0]]
    last = queries.page(run, 1, [("kept", "=", True)], [("score_return", "descending")], 6, 3)
    assert len(last.rows) == 2
    assert queries.page(run, 1, offset=N).rows.num_rows == 0


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ([("score_return", "<", -1)], [4, 9]),
        ([("score_return", "<=", -1.0), ("action", "in", [1])], [4, 7]),
        ([("action", "!=", 0), ("row", ">=", 8)], [8, 10, 11]),
        ([("action", ">", 1.5)], [2, 5, 8, 11]),
        ([("completion", "contains", "PARIS 1")], [1, 11]),
        ([("completion", "null", None)], [3]),
        ([("completion", "not null", None), ("row", "<", 2)], [0, 1]),
        ([("completion", "=", "' or 1=1 --")], []),
    ],
)
def test_conditions(run, where, expected):
    page = queries.page(run, 1, where, limit=N)
    assert rows_of(page) == expected
    assert page.matching == len(expected)


def test_what_has_no_number_comes_last_and_ties_keep_their_order(run):
    for direction in ("ascending", "descending"):
        assert rows_of(queries.page(run, 2, order=[("score_return", direction)], limit=N))[-1] == 2
    assert rows_of(queries.page(run, 2, order=[("action", "ascending")], limit=5)) == [0, 3, 6, 9, 1]
    by_two = queries.page(run, 2, order=[("action", "descending"), ("score_return", "ascending")], limit=4)
    assert rows_of(by_two) == [5, 11, 8, 2]


def test_a_search_looks_into_every_text(run):
    assert rows_of(queries.page(run, 1, search="ROME")) == [0, 2, 4, 6, 8, 10]
    assert queries.page(run, 1, search="100%").matching == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"where": [("x; drop table records", "=", 1)]}, "the records have no column 'x; drop table records'"),
        ({"where": [("action", "like", 1)]}, "'like' is not an operator"),
        ({"where": [("action", "<", "a lot")]}, "'action'"),
        ({"order": [("obs", "ascending")]}, "cannot be sorted by obs"),
        ({"order": [("action", "sideways")]}, "'sideways' is not an order"),
        ({"columns": ["nothing"]}, "no column 'nothing'"),
    ],
)
def test_what_cannot_be_asked_is_said(run, asked, said):
    with pytest.raises(rs.RollsightError, match=said):
        queries.page(run, 1, **asked)


def test_a_page_of_nothing_has_its_columns(run):
    page = queries.page(run, 1, [("row", "<", 0)], [("score_return", "ascending")], columns=["kept", "obs"])
    assert (page.rows.column_names, len(page.rows), page.matching) == (["row", "kept", "obs"], 0, 0)


def test_columns_can_be_chosen(run):
    assert queries.page(
        run, 1, columns=["kept", "action"], order=[("score_return", "ascending")]
    ).rows.column_names == [
        "row",
        "kept",
        "action",
    ]


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


def test_a_line_for_each_run_without_its_records(tmp_path, monkeypatch):
    paths = [write(tmp_path / name, rounds, arm=name) for name, rounds in (("a", 2), ("b", 1))]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run.json").write_text("{")
    runs.create(tmp_path / "d", {}).close()
    lines = queries.summary_table([*paths, tmp_path / "c", tmp_path / "d"])
    assert [line.rounds for line in lines] == [2, 1, 0, 0]
    assert lines[0].last["return_mean"] == 2.0
    assert lines[0].metadata["arm"] == "a"
    assert "damaged" in lines[2].problem
    assert (lines[3].problem, lines[3].last) == ("", {})

    with runs.resume(paths[1]) as writer:
        writer.write_round(2, {"records": 0, "return_mean": 7.0})
    opened = []
    monkeypatch.setattr(queries, "open_run", lambda path: opened.append(path) or runs.open(path))
    again = queries.summary_table(paths, lines)
    assert opened == [paths[1]]
    assert again[0] is lines[0]
    assert (again[1].rounds, again[1].last["return_mean"]) == (2, 7.0)


def test_a_page_does_not_read_a_file_twice(run, monkeypatch):
    queries.page(run, 1)
    monkeypatch.setattr(builtins, "open", None)
    monkeypatch.setattr(runs.Run, "records", None)
    assert queries.page(run, 1, [("kept", "=", False)]).matching == 4


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
