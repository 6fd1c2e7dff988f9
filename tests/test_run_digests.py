"""A run folder with something wrong: damaged, missing and foreign files are said by tables, SQL and `check`."""

import errno
import json
import os
import resource
import subprocess
import warnings

import numpy as np
import pytest
import torch

from rollsight import runs
from rollsight.cli import main
from rollsight.errors import RollsightError
from rollsight.runs.check import check_run
from rollsight.runs.digests import DigestList
from rollsight.runs.metadata import write_metadata

N = 32


def write(writer, *rounds):
    for round in rounds:
        rng = np.random.default_rng(round)
        columns = {"round": np.full(N, round), "step": np.arange(N), "score_return": rng.normal(size=N)}
        writer.write_records(round, columns)
        writer.write_evaluation(round, [1.0, 2.0], [10, 20])
        writer.write_snapshot(round, lambda file: file.write(b"frozen" * 50))
        writer.write_round(round, {"records": N, "return_mean": float(round)})


@pytest.fixture
def path(tmp_path):
    with runs.create(tmp_path / "run", {"env": "Lake", "settings": {"gamma": 0.9}}) as writer:
        writer.write_evaluation(0, [0.0], [5])
        write(writer, 1, 2, 3)
    return writer.path


def without_digests(path):
    """As an earlier version wrote it."""
    metadata = json.loads((path / "run.json").read_text())
    del metadata["digests"], metadata["sha256"]
    (path / "run.json").write_text(json.dumps(metadata))
    (path / "SHA256SUMS").unlink()
    return path


def flip(file, at, bit=1):
    content = bytearray(file.read_bytes())
    content[at] ^= bit
    file.write_bytes(content)


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught]


def silent(call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


# Digests.


def test_sha256sum_itself_verifies_a_run(path):
    with runs.resume(path) as writer:
        writer.remove_snapshot(2)
    check = ["sha256sum", "--check", "--strict", "--ignore-missing", "SHA256SUMS"]
    assert subprocess.run(check, cwd=path, capture_output=True).stdout.count(b": OK") == 1 + 3 * 4 - 1
    flip(path / "evaluations/round-000000.parquet", 100)
    assert b"evaluations/round-000000.parquet: FAILED" in subprocess.run(check, cwd=path, capture_output=True).stdout


def test_every_flipped_bit_is_found_wherever_the_file_is_read(path):
    readers = {
        "records": [lambda run: run.records(2), lambda run: run.targets(2), lambda run: run.sql("from records")],
        "rounds": [lambda run: run.sql("select * from rounds")],
        "evaluations": [lambda run: run.sql("select * from evaluations")],
        "snapshots": [lambda run: run.snapshot_path(2)],
    }
    rng = np.random.default_rng(0)
    for kind, calls in readers.items():
        (file,) = (path / kind).glob("round-000002.*")
        whole = file.read_bytes()
        for at in rng.integers(len(whole), size=20):
            flip(file, int(at), 1 << int(rng.integers(8)))
            for call in calls:
                with pytest.raises(RollsightError, match=r"000002.* is damaged \(its digest .*other files .* intact"):
                    call(runs.open(path))
            file.write_bytes(whole)
        for call in calls:
            silent(lambda call=call: call(runs.open(path)))


def test_a_file_that_changes_under_an_open_run_is_read_again(path):
    run = runs.open(path)
    assert run.sql("select count(*) from records").fetchall() == [(3 * N,)]
    flip(path / "records/round-000001.parquet", 50)
    with pytest.raises(RollsightError, match=r"round-000001.parquet is damaged"):
        run.sql("select count(*) from records")


def test_a_run_of_an_earlier_version_is_read_in_silence(path):
    run = silent(lambda: runs.open(without_digests(path)))
    assert silent(lambda: run.sql("select count(*) from records, rounds").fetchall()) == [(9 * N,)]
    assert len(silent(lambda: run.records(2))) == N
    silent(lambda: run.snapshot_path(3))
    with runs.resume(path) as writer:  # what is written from now on has digests
        write(writer, 4)
    run = silent(lambda: runs.open(path))
    assert silent(lambda: run.sql("select count(*) from records").fetchall()) == [(4 * N,)]
    flip(path / "records/round-000004.parquet", 60)
    with pytest.raises(RollsightError, match="is damaged"):
        run.records(4)
    found = check_run(path)
    assert list(found.damaged) == ["records/round-000004.parquet"]
    assert len(found.unverifiable) == 3 * 4 + 1


def test_rounds_that_were_replaced_or_removed_on_purpose_are_not_missed(path):
    with runs.resume(path, after=1) as writer:
        write(writer, 2)
        writer.remove_snapshot(1)
    with runs.resume(path) as writer:
        writer.write_records(3, {"round": np.full(2, 3)})  # in flight when the process ends
    run = silent(lambda: runs.open(path))
    assert silent(lambda: run.sql("select count(*) from records").fetchall()) == [(2 * N,)]
    assert silent(lambda: run.snapshot_path(2)).is_file()
    assert check_run(path).whole


def test_a_failed_round_leaves_no_lines_behind(path, monkeypatch):
    with runs.resume(path) as writer:
        listed = (path / "SHA256SUMS").read_bytes()
        replace = os.replace

        def failing(source, target):
            if "round-000004" in str(target) and "rounds" in str(target):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            replace(source, target)

        monkeypatch.setattr(os, "replace", failing)
        with pytest.raises(RollsightError, match="Input/output error"):
            write(writer, 4)
        assert (path / "SHA256SUMS").read_bytes() == listed
        monkeypatch.undo()
        writer.write_round(4, {"records": N})
    assert len(silent(lambda: runs.open(path).records(4))) == N
    assert check_run(path).whole


def end_at(monkeypatch, owner, name, call):
    """Call it in a process that ends at once where it comes to `owner.name`."""
    if (process := os.fork()) == 0:
        monkeypatch.setattr(owner, name, lambda *_, **__: os._exit(0))
        call()
        os._exit(1)
    assert os.waitpid(process, 0)[1] == 0


def test_what_a_killed_writer_did_not_finish_is_not_missed(path, monkeypatch):
    checkpoint = path / "checkpoints/round-000003.pt"
    with runs.resume(path) as writer:
        end_at(monkeypatch, os, "replace", lambda: writer.write_checkpoint(3, lambda file: file.write(b"state")))
    assert not checkpoint.exists()
    assert check_run(path).whole
    with runs.resume(path) as writer:
        assert check_run(path).whole
        writer.write_checkpoint(3, lambda file: file.write(b"state"))
        end_at(monkeypatch, type(path), "unlink", lambda: writer.remove_checkpoint(3))
    assert checkpoint.exists()
    runs.resume(path).close()
    assert not checkpoint.exists()
    with runs.resume(path) as writer:
        writer.write_checkpoint(3, lambda file: file.write(b"state"))
        end_at(monkeypatch, DigestList, "complete", lambda: write(writer, 4))
    runs.resume(path).close()
    assert check_run(path).whole
    checkpoint.unlink()
    (path / "records/round-000004.parquet").unlink()
    assert check_run(path).missing == ["records/round-000004.parquet", "checkpoints/round-000003.pt"]


def test_metadata_that_was_edited_is_used_and_said(path):
    text = (path / "run.json").read_text()
    (path / "run.json").write_text(text.replace("0.9", "0.8"))
    (said,) = warned(lambda: runs.open(path))
    assert "run.json was changed since rollsight wrote it" in said
    assert list(check_run(path).damaged) == ["run.json"]
    metadata = json.loads(text)
    assert metadata["sha256"]
    (path / "run.json").write_text(json.dumps(metadata))  # other blanks, the same entries
    silent(lambda: runs.open(path))


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"env": 3}, "env is 3"),
        ({"env_kwargs": "is_slippery=False"}, "env_kwargs is"),
        ({"run_settings": ["a"]}, r"run_settings is \["),
        ({"run_settings": {"options": "x"}}, "run_settings.options is"),
        ({"settings": {"gamma": True}}, "settings.gamma is true"),
        ({"created": 5}, "created is 5"),
        ({"digests": {"from_round": "one"}}, "digests.from_round is"),
    ],
)
def test_metadata_of_another_kind_is_one_sentence(path, entries, named):
    write_metadata(path, {"format": 1, **entries})
    with pytest.raises(RollsightError, match=rf"run.json is damaged \({named}.*the tables are intact"):
        runs.open(path)


def test_metadata_nested_without_end_is_one_sentence(path):
    for content in ("[" * 20_000, '{"format": 1, "x": ' + "[" * 20_000 + "]" * 20_000 + "}"):
        (path / "run.json").write_text(content)
        with pytest.raises(RollsightError, match=r"run\.json is damaged"):
            runs.open(path)


# What is missing, foreign, or may not be read.


def test_lost_rows_are_said_once_with_how_many_are_left(path):
    (path / "records/round-000002.parquet").unlink()
    run = runs.open(path)
    (said,) = warned(lambda: [run.sql("select 1 from records") for _ in range(2)])
    assert said == f"{path}: the records of round 2 are missing, 64 of 96 are left"
    assert silent(lambda: runs.open(path).sql("select count(*) from rounds").fetchall()) == [(3,)]
    for kind in ("rounds", "evaluations", "snapshots"):
        next((path / kind).glob("round-000002.*")).unlink()
    run = runs.open(path)
    said = warned(lambda: run.sql("select count(*) from evaluations"))
    assert [one.partition(": ")[2] for one in said] == [
        "the summary of round 2 is missing, and with it all rows of the round",
        "the evaluations of round 2 are missing",
    ]


def test_lost_files_of_an_earlier_versions_run_are_said_where_others_show_it(path):
    without_digests(path)
    (path / "records/round-000002.parquet").unlink()
    (said,) = warned(lambda: runs.open(path).records(1))
    assert "the records of round 2 are missing, 64 of 96 are left" in said
    (path / "rounds/round-000001.parquet").unlink()
    said = warned(lambda: runs.open(path).records(3))
    assert any("the summary of round 1 is missing" in one for one in said)


def test_a_file_with_more_zeros_is_not_a_second_round(path):
    (path / "rounds/round-0000003.parquet").write_bytes((path / "rounds/round-000003.parquet").read_bytes())
    run = runs.open(path)
    assert run.rounds == [1, 2, 3]
    assert run.sql("select count(*) from rounds").fetchall() == [(3,)]
    assert list(check_run(path).foreign) == ["rounds/round-0000003.parquet"]


def test_a_file_that_the_writer_does_not_know_is_said(path):
    for kind in ("rounds", "records"):
        (path / kind / "round-000004.parquet").write_bytes((path / kind / "round-000002.parquet").read_bytes())
    said = warned(lambda: runs.open(path).sql("select 1 from records"))
    assert [one for one in said if "records of round 4 cannot be verified (SHA256SUMS does not list them)" in one]
    assert list(check_run(path).foreign) == ["rounds/round-000004.parquet", "records/round-000004.parquet"]


def test_what_may_not_be_read_is_not_called_damaged(path, monkeypatch):
    if os.geteuid() == 0:  # who may read everything
        opened = type(path).open

        def refuse(self, *arguments, **options):
            if self.parts[-2:] == ("records", "round-000002.parquet"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
            return opened(self, *arguments, **options)

        monkeypatch.setattr(type(path), "open", refuse)
    else:
        (path / "records/round-000002.parquet").chmod(0)
    for call in (lambda run: run.records(2), lambda run: run.sql("from records")):
        with pytest.raises(RollsightError, match=r"may not be read \(permission denied\)"):
            call(runs.open(path))
    assert list(check_run(path).unreadable) == ["records/round-000002.parquet"]


def test_a_file_that_vanishes_while_it_is_read_is_not_called_damaged(path):
    run = runs.open(path)
    listed = run._complete
    run._complete = lambda kind: [*listed(kind), 4]  # listed a moment ago, then overwritten
    for call in (lambda: run.records(4), lambda: run.sql("select * from records")):
        with pytest.raises(RollsightError, match="is gone since the folder was listed"):
            call()


# rollsight check.


def test_check_names_every_file_that_is_not_as_it_was(path, capsys):
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: 14 files verified\n"
    flip(path / "snapshots/round-000001.pt", 7)
    (path / "evaluations/round-000003.parquet").unlink()
    assert main(["check", str(path), "--json"]) == 1
    shown = capsys.readouterr()
    (found,) = json.loads(shown.out)
    assert list(found["damaged"]) == ["snapshots/round-000001.pt"]
    assert found["missing"] == ["evaluations/round-000003.parquet"]
    assert not found["whole"]
    assert "1 of 1 runs are not as they were written" in shown.err
    assert main(["check", str(path.parent)]) == 1
    assert "damaged: snapshots/round-000001.pt (its digest is not the one in SHA256SUMS)" in capsys.readouterr().out
    assert main(["check", str(path / "records")]) == 1


def test_check_looks_into_tables_that_have_no_digests(path):
    without_digests(path)
    records = path / "records"
    (records / "round-000001.parquet").write_bytes((records / "round-000003.parquet").read_bytes())
    (records / "round-000002.parquet").write_bytes(b"PAR1")
    found = check_run(path)
    assert found.damaged["records/round-000001.parquet"] == "it is of another round"
    assert "is damaged" in found.damaged["records/round-000002.parquet"]
    assert len(found.unverifiable) == 1 + 1 + 3 * 4 - 2


def test_a_command_says_each_warning_in_one_line(path, capsys):
    (path / "records/round-000002.parquet").unlink()
    for command in (["sql", str(path), "select round from records"], ["top", str(path), "--json"]):
        assert main(command) == 0
        lines = capsys.readouterr().err.splitlines()
        assert lines == [f"warning: {path}: the records of round 2 are missing, 64 of 96 are left"]


# Temporary files.


def test_planted_links_are_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (".table.csv.tmp", "table.csv"):
        (tmp_path / name).symlink_to(victim)
    with runs.whole_file(tmp_path / "table.csv") as temporary:
        assert temporary.name != ".table.csv.tmp"
        temporary.write_text("mine")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "table.csv").is_symlink()
    assert (tmp_path / "table.csv").read_text() == "mine"
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        runs.create(run, {})


def test_a_temporary_file_that_somebody_replaced_is_not_taken(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")

    def write_while_it_is_replaced():
        with runs.whole_file(tmp_path / "x.csv") as temporary:
            temporary.unlink()
            temporary.symlink_to(victim)

    with pytest.raises(RollsightError, match="somebody replaced"):
        write_while_it_is_replaced()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["victim"]


def test_what_killed_writers_left_is_removed(path):
    names = (".round-000004.parquet.0123456789abcdef.tmp", ".round-000004.parquet.tmp")
    for name in names:
        (path / "records" / name).write_bytes(b"half")
    (path / ".run.json.0123456789abcdef.tmp").write_bytes(b"{")
    (path / "records/.notes.tmp").write_bytes(b"mine")
    runs.resume(path).close()
    left = [file.name for file in path.rglob("*.tmp")]
    assert left == [".notes.tmp"]


def test_files_have_the_permissions_that_the_user_gives_files(tmp_path):
    before = os.umask(0o027)
    try:
        with runs.whole_file(tmp_path / "x") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_a_limit_on_file_sizes_is_a_sentence_whoever_writes(path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with runs.resume(path) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            for attempt in (
                lambda: writer.write_snapshot(4, lambda file: torch.save(torch.randn(20_000), file)),
                lambda: writer.write_records(4, {"x": np.random.default_rng(0).normal(size=20_000)}),
            ):
                with pytest.raises(RollsightError, match=r"File too large.*ulimit -f.* is intact"):
                    attempt()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        write(writer, 4)
    assert check_run(path).whole
