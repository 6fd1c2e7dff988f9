"""The run folder: whole files, one writer, rounds that survive kill -9, and reading it by table and by SQL."""

import errno
import math
import multiprocessing
import os
import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from filelock import lock_descriptor

from rollsight import runs
from rollsight.errors import RollsightError

N = 64
SAYS = ("run.json", "SHA256SUMS")  # where it stands that a run was continued


def columns(round, n=N):
    rng = np.random.default_rng(round)
    return {
        "round": np.full(n, round),
        "env": np.arange(n) % 4,
        "step": np.arange(n) // 4,
        "action": rng.normal(size=(n, 2)).astype(np.float32),
        "reward": rng.normal(size=n),
        "score_return": [None] * n if round == 1 else rng.normal(size=n),
        "kept": rng.random(n) > 0.5,
        "episode_start": ["{}" if i == 0 else None for i in range(n)],
    }


def write(writer, *rounds, n=N):
    for round in rounds:
        writer.write_records(round, columns(round, n))
        writer.write_evaluation(round, [1.0, 2.0], [10, 20])
        writer.write_snapshot(round, lambda file: file.write(b"frozen"))
        writer.write_round(round, {"timesteps": round * n, "return_mean": None if round == 1 else 0.5})


@pytest.fixture
def path(tmp_path):
    """A finished run of three rounds."""
    with runs.create(tmp_path / "run", {"seed": 3}) as writer:
        write(writer, 1, 2, 3)
    return writer.path


def everything_in(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


# What is written is what is read.


def test_columns_come_back_with_their_types_nulls_and_shapes(tmp_path):
    image = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4)
    written = {
        "kept": np.array([True, False, True]),
        "reward": np.array([1.5, math.nan, -math.inf]),
        "score": [None, 0.5, None],
        "action": [[1.0, 2.0], None, [3.0]],
        "rows": [image[0], image[1], None],
        "obs": image,
        "episode_start": [None, '{"seed": 1}', None],
    }
    with runs.create(tmp_path / "run", {}) as writer:
        writer.write_records(1, written)
        writer.write_round(1, {})
    table = runs.open(tmp_path / "run").records(1)

    assert table["kept"].to_pylist() == [True, False, True]
    assert str(table["reward"].to_pylist()) == "[1.5, nan, -inf]"  # NaN is a value, not a missing one
    assert table["score"].to_pylist() == [None, 0.5, None]
    assert table["action"].to_pylist() == [[1.0, 2.0], None, [3.0]]
    assert table["rows"].to_pylist() == [image[0].tolist(), image[1].tolist(), None]
    assert table["obs"].to_pylist() == image.tolist()
    assert table["obs"].type == pa.list_(pa.list_(pa.uint8(), 4), 2)
    assert table["episode_start"].to_pylist() == [None, '{"seed": 1}', None]


def test_rounds_and_snapshots_are_listed_and_found(path):
    run = runs.open(path)
    assert run.name == "run"
    assert run.rounds == run.snapshot_rounds == run.evaluation_rounds == [1, 2, 3]
    assert run.records(2)["round"].to_pylist() == [2] * N
    assert run.snapshot_path(3).read_bytes() == b"frozen"
    assert run.targets(1) == []
    assert run.targets(2) == ["return"]


def test_unknown_rounds_are_errors_that_name_the_known_ones(path):
    (path / "snapshots/round-000002.pt").unlink()
    run = runs.open(path)
    with pytest.raises(RollsightError, match=r"round 9 .* the rounds with records are 1-3$"):
        run.records(9)
    with pytest.raises(RollsightError, match=r"round 2 .* the rounds with snapshots are 1, 3$"):
        run.snapshot_path(2)


def test_a_reader_follows_an_active_writer_and_sees_complete_rounds_only(tmp_path):
    with runs.create(tmp_path / "run", {}) as writer:
        run = runs.open(tmp_path / "run")
        assert run.rounds == []
        write(writer, 1)
        writer.write_records(2, columns(2))
        assert run.rounds == [1]
        assert run.sql("select count(*) from records").fetchall() == [(N,)]
        with pytest.raises(RollsightError, match=r"round 2 .* has no records"):
            run.records(2)
        writer.write_round(2, {})
        assert run.rounds == [1, 2]
        assert run.sql("select count(*) from records").fetchall() == [(2 * N,)]


def test_metadata_says_how_the_run_was_made_and_takes_odd_values(tmp_path):
    given = {
        "seed": np.int64(3),
        "drop": np.float32(0.5),
        "device": torch.device("cpu"),
        "folder": Path("a/b"),
        "clip": math.inf,
        "schedule": math.sqrt,
        "layers": (64, np.array([1, 2]), torch.tensor([1.5])),
        "nested": {1: {"x": None, "ok": True}},
    }
    with runs.create(tmp_path / "run", given):
        pass
    metadata = runs.open(tmp_path / "run").metadata
    assert {name: metadata[name] for name in given} == {
        "seed": 3,
        "drop": 0.5,
        "device": "cpu",
        "folder": "a/b",
        "clip": "inf",
        "schedule": "math.sqrt",
        "layers": [64, [1, 2], [1.5]],
        "nested": {"1": {"x": None, "ok": True}},
    }
    assert metadata["versions"]["torch"] == torch.__version__
    assert metadata["machine"]["torch_threads"] == torch.get_num_threads()
    assert {"format", "created", "command"} < metadata.keys()
    with pytest.raises(RollsightError, match="'command' is written by the run folder itself"):
        runs.create(tmp_path / "run", {"command": "x"}, overwrite=True)
    assert runs.open(tmp_path / "run").metadata == metadata


# Append-only, one writer.


def test_nothing_that_is_written_can_be_written_again(path):
    before = {name: (path / name).read_bytes() for name in everything_in(path) if name not in SAYS}
    with runs.resume(path) as writer:
        assert writer.last_round == 3
        with pytest.raises(RollsightError, match="round 3 is not after the last complete round 3"):
            writer.write_records(3, columns(3))
        with pytest.raises(RollsightError, match="round 1 is not after"):
            writer.write_round(1, {})
        with pytest.raises(RollsightError, match="written already"):
            writer.write_evaluation(3, [9.0], [9])
        with pytest.raises(RollsightError, match="written already"):
            writer.write_snapshot(3, lambda file: file.write(b"other"))
        with pytest.raises(RollsightError, match="rounds count from 1"):
            writer.write_snapshot(0, lambda file: file.write(b"other"))
    assert {name: (path / name).read_bytes() for name in everything_in(path) if name not in SAYS} == before


def hold(path, held, done):
    with runs.resume(path):
        held.set()
        done.wait(60)


def test_a_writer_of_another_process_is_refused_until_the_first_closes(path):
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(path, held, done))
    other.start()
    assert held.wait(60)
    for attempt in (lambda: runs.resume(path), lambda: runs.create(path, {}, overwrite=True)):
        with pytest.raises(RollsightError, match="another process is writing"):
            attempt()
    assert runs.open(path).rounds == [1, 2, 3]
    done.set()
    other.join()
    runs.resume(path).close()


def test_a_writer_of_the_same_process_is_taken_over(path):
    """An exception ended the training that opened it, and something still refers to it."""
    left = runs.resume(path)
    with runs.resume(path) as writer:
        with pytest.raises(RollsightError, match="a later writer of this process has taken over"):
            left.write_round(4, {})
        with pytest.raises(RollsightError, match="a later writer of this process has taken over"):
            left.remove_snapshot(3)
        writer.write_round(4, {})
    again = runs.create(path, {}, overwrite=True)
    for attempt in (lambda: writer.write_round(5, {}), lambda: writer.remove_snapshot(3)):
        with pytest.raises(RollsightError, match="is closed"):
            attempt()
    again.close()
    left.close()


def wait_with_a_copy(writer, closes, ready, done):
    if closes:
        writer.close()
    ready.set()
    done.wait(60)


@pytest.mark.parametrize("closes", [False, True])
def test_a_forked_worker_neither_keeps_the_lock_nor_gives_it_up(path, closes):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    writer = runs.resume(path)
    worker = context.Process(target=wait_with_a_copy, args=(writer, closes, ready, done))
    worker.start()
    assert ready.wait(60)
    with (path / ".lock").open() as lock:
        assert not lock_descriptor(lock.fileno(), blocking=False)  # as another process would ask for it
    runs.resume(path).close()  # takes over
    runs.resume(path).close()
    done.set()
    worker.join()


def test_a_run_goes_on_after_an_earlier_round_and_says_so(path):
    with runs.resume(path, after=1, reason="a checkpoint") as writer:
        assert writer.last_round == 1
        write(writer, 2, n=3)
    run = runs.open(path)
    assert run.rounds == [1, 2]
    assert len(run.records(2)) == 3
    assert set(run.snapshot_rounds) <= {1, 2}
    assert max(run.evaluation_rounds) <= 2
    (entry,) = run.metadata["continued"]
    assert (entry["after_round"], entry["replaced_rounds"], entry["reason"]) == (1, [2, 3], "a checkpoint")
    runs.resume(path).close()
    assert [one["after_round"] for one in runs.open(path).metadata["continued"]] == [1, 2]
    with pytest.raises(RollsightError, match="ends with round 2 and cannot be continued after round 5"):
        runs.resume(path, after=5)


def test_a_closed_writer_writes_no_more(path):
    writer = runs.resume(path)
    writer.close()
    writer.close()
    with pytest.raises(RollsightError, match="is closed"):
        writer.write_round(4, {})


def test_create_refuses_an_existing_run_unless_told_to_overwrite(path):
    (path / "notes.txt").write_text("mine")
    with pytest.raises(RollsightError, match=r"exists already.*overwrite=True"):
        runs.create(path, {})
    with runs.create(path, {"seed": 4}, overwrite=True) as writer:
        assert writer.last_round == 0
        write(writer, 1)
    run = runs.open(path)
    assert run.rounds == run.snapshot_rounds == [1]
    assert run.metadata["seed"] == 4
    assert (path / "notes.txt").read_text() == "mine"


def test_create_never_touches_what_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(RollsightError, match="is not empty and is not a run"):
            runs.create(tmp_path, {}, overwrite=overwrite)
        with pytest.raises(RollsightError, match=r"thesis.tex is a file"):
            runs.create(tmp_path / "thesis.tex", {}, overwrite=overwrite)
    assert everything_in(tmp_path) == ["thesis.tex"]


def test_a_creation_that_failed_is_in_nobodys_way(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RollsightError, match=r"run.json could not be written"):
        runs.create(tmp_path / "run", {})
    monkeypatch.undo()
    (tmp_path / "run/.run.json.tmp").write_text("{")  # as kill -9 would leave it
    with runs.create(tmp_path / "run", {}) as writer:
        write(writer, 1)
    assert runs.open(tmp_path / "run").rounds == [1]


def test_wrong_columns_are_named_and_leave_nothing_behind(path):
    with runs.resume(path) as writer:
        with pytest.raises(RollsightError, match=r"equal lengths.*'b': 2"):
            writer.write_records(4, {"a": [1], "b": [1, 2]})
        with pytest.raises(RollsightError, match="column 'a' cannot be stored"):
            writer.write_records(4, {"a": [1, "x"]})
        with pytest.raises(RollsightError, match="column 'thing' cannot be stored"):
            writer.write_round(4, {"thing": object()})
        write(writer, 4)
    assert runs.open(path).rounds == [1, 2, 3, 4]


# Whole files, or none.


def test_a_half_written_file_is_never_seen_and_never_left(path):
    def fail(file):
        file.write(b"half")
        file.flush()
        assert list((path / "snapshots").glob("round-000004*")) == []
        raise KeyboardInterrupt

    before = everything_in(path)
    with runs.resume(path) as writer:
        with pytest.raises(KeyboardInterrupt):
            writer.write_snapshot(4, fail)
        assert everything_in(path) == before


def test_a_full_disk_is_one_sentence_and_costs_nothing_already_written(path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = everything_in(path)
    with runs.resume(path) as writer:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RollsightError, match=r"round-000004.parquet .*No space left.*is intact"):
            writer.write_records(4, columns(4))
        assert everything_in(path) == before
        monkeypatch.undo()
        write(writer, 4)  # room was made: the same writer goes on
    assert runs.open(path).rounds == [1, 2, 3, 4]


@pytest.fixture
def tiny_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # a handle may close a moment later


def test_a_really_full_disk(tiny_disk):
    with runs.create(tiny_disk / "run", {}) as writer:
        write(writer, 1)
        with pytest.raises(RollsightError, match="No space left"):
            writer.write_records(2, {"x": np.random.default_rng(0).normal(size=100_000)})
        with pytest.raises(RollsightError, match="No space left"):  # which torch reports as a wrong position
            writer.write_snapshot(2, lambda file: torch.save(torch.randn(200_000), file))
        write(writer, 2)
    run = runs.open(tiny_disk / "run")
    assert run.rounds == run.snapshot_rounds == [1, 2]
    assert len(run.records(1)) == N


def write_until_killed(path):
    with runs.resume(path) as writer:
        while True:
            write(writer, writer.last_round + 1, n=2048)


def test_kill_9_loses_at_most_the_round_in_flight(tmp_path):
    path, delays = tmp_path / "run", random.Random(0)
    with runs.create(path, {}) as writer:
        writer.write_evaluation(0, [0.0], [1])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rollsight.runs"])
    last = 0
    for _ in range(4):
        process = context.Process(target=write_until_killed, args=(path,))
        process.start()
        run, deadline = runs.open(path), time.monotonic() + 60
        while len(run.rounds) < last + 2:
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        with pytest.raises(RollsightError, match="another process is writing"):
            runs.resume(path)
        time.sleep(delays.uniform(0, 0.03))
        process.kill()
        process.join()

        seen, last = last, len(run.rounds)
        assert last >= seen + 2
        assert run.rounds == list(range(1, last + 1))
        assert all(len(run.records(round)) == 2048 for round in run.rounds)
        assert run.sql("select count(*), count(distinct round) from records").fetchall() == [(2048 * last, last)]
    with runs.resume(path) as writer:
        assert writer.last_round == last
        left = set(everything_in(path))
        assert not [name for name in left if f"{last + 1:06d}" in name or name.endswith(".tmp")]
        assert "evaluations/round-000000.parquet" in left
        write(writer, last + 1)
    assert run.rounds == run.snapshot_rounds == list(range(1, last + 2))


def test_resume_clears_away_the_round_in_flight_and_nothing_else(path):
    before = everything_in(path)
    with runs.resume(path) as writer:
        writer.write_records(4, columns(4))
        writer.write_snapshot(4, lambda file: file.write(b"x"))
        writer.write_evaluation(4, [1.0], [1])
    (path / "rounds/.round-000004.parquet.tmp").write_bytes(b"half")
    runs.resume(path).close()
    assert everything_in(path) == before


# What is not a run.


def test_opening_what_is_no_run_names_the_runs_near_it(path):
    for wrong in (path.parent / "rnu", path.parent, path / "records"):
        with pytest.raises(RollsightError, match="is not a run") as caught:
            runs.open(wrong)
        assert str(path) in str(caught.value)
    with pytest.raises(RollsightError, match="is not a run"):
        runs.resume(path.parent)
    assert runs.is_run(path)
    assert not runs.is_run(path.parent)


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"format": 1', "damaged"), ("[]", "no format number"), ('{"format": 99}', "upgrade rollsight")],
)
def test_metadata_that_cannot_be_read(path, content, message):
    (path / "run.json").write_text(content)
    for attempt in (runs.open, runs.resume):
        with pytest.raises(RollsightError, match=message):
            attempt(path)


# SQL.


def test_sql_joins_rounds_with_different_columns_and_null_only_columns(tmp_path):
    with runs.create(tmp_path / "run", {"seed": 3, "hyper": {"lr": 0.5}}) as writer:
        write(writer, 1, 2)  # round 1 has no scores and no mean return
        writer.write_round(3, {"timesteps": 1, "extra": True})
    run = runs.open(tmp_path / "run")
    assert run.sql("select round, count(score_return) from records group by 1 order by 1").fetchall() == [
        (1, 0),
        (2, N),
    ]
    assert run.sql("select round, return_mean, extra from rounds order by round").fetchall() == [
        (1, None, None),
        (2, 0.5, None),
        (3, None, True),
    ]
    assert run.sql("select sum(length) from evaluations").fetchall() == [(60,)]
    assert run.sql("select seed, (hyper->>'lr')::double from run").fetchall() == [(3, 0.5)]


@pytest.mark.parametrize("name", ["p=0.5", "a[1]", "b*c?", "it's"])
def test_sql_takes_any_folder_name(tmp_path, name):
    for other in ("a1", "bxcx"):  # what a[1] and b*c? would match as patterns
        with runs.create(tmp_path / other, {"seed": 2}) as writer:
            write(writer, 1)
    with runs.create(tmp_path / name, {"seed": 1}) as writer:
        write(writer, 1)
    run = runs.open(tmp_path / name)
    assert run.sql("select * from records").columns == list(columns(1)) == run.records(1).column_names
    assert run.sql("select seed from run, rounds").fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("selec 1", "the query failed: Parser Error"),
        ("select scor_return from records", 'the query failed: .*scor_return.*"score_return"'),
        ("select cast(episode_start as int) from records", "the query failed: Conversion Error"),
        ("select * from recods", "the query failed: .*recods"),
        ("", "returns no table"),
    ],
)
def test_a_wrong_query_is_one_line(path, query, message):
    with pytest.raises(RollsightError, match=message) as caught:
        runs.open(path).sql(query)
    assert "\n" not in str(caught.value)


def test_a_table_without_rows_yet_is_said(tmp_path):
    with runs.create(tmp_path / "run", {}) as writer:
        writer.write_round(1, {"records": 5})
    run = runs.open(tmp_path / "run")
    with pytest.raises(RollsightError, match=r"holds no evaluations \(yet\)"):
        run.sql("select * from evaluations")
    assert run.sql("select records from rounds").fetchall() == [(5,)]  # a column of that name is no table


@pytest.mark.parametrize("damage", ["truncated", "empty", "overwritten"])
def test_a_damaged_file_is_named_and_the_rest_stays_readable(path, damage):
    file = path / "records/round-000002.parquet"
    content = file.read_bytes()
    third = len(content) // 3
    file.write_bytes(
        {"truncated": content[:third], "empty": b"", "overwritten": b"PAR1" + b"x" * third + content[4 + third :]}[
            damage
        ]
    )
    run = runs.open(path)
    for attempt in (lambda: run.records(2), lambda: run.sql("select * from records").fetchall()):
        with pytest.raises(RollsightError, match=r"records/round-000002.parquet is damaged .*other files .* intact"):
            attempt()
    assert len(run.records(3)) == N
    assert run.sql("select count(*) from rounds").fetchall() == [(3,)]
    file.rename(path.parent / "aside.parquet")
    assert run.sql("select distinct round from records order by round").fetchall() == [(1,), (3,)]


# Ranking.


def test_ranking_leaves_out_invalid_and_unscored_records_and_keeps_buffer_order_in_ties():
    records = pa.table({"step": [0, 1, 2, 3, 4], "valid": [True, True, False, True, True]})
    scores = np.array([1.0, 2.0, 9.0, 2.0, math.nan])
    best = runs.rank_records(records, scores, 10)
    assert [(row["rank"], row["step"], row["score"]) for row in best] == [(1, 1, 2.0), (2, 3, 2.0), (3, 0, 1.0)]
    assert [row["step"] for row in runs.rank_records(records, scores, 2, lowest=True)] == [0, 1]
    many = pa.table({"step": np.arange(1000)})
    assert [row["step"] for row in runs.rank_records(many, np.arange(1000) % 2.0, 500)] == list(range(1, 1000, 2))
