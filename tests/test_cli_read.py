"""The read-only commands as a user meets them: top, compare, sql, export, help and errors."""

import csv
import json
import math
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import rollsight as rs
from rollsight import runs
from rollsight.analysis import intervals
from rollsight.cli import COMMANDS, main
from rollsight.snapshot import Snapshot
from rollsight.update import UpdateRule

ENVS, STEPS = 4, 8
N = ENVS * STEPS


def scores_of(round):
    return np.random.default_rng(round).normal(size=N)


def records(round, *, scored):
    rng = np.random.default_rng(100 + round)
    return {
        "round": np.full(N, round),
        "env": np.repeat(np.arange(ENVS), STEPS),
        "step": np.tile(np.arange(STEPS), ENVS),
        "episode": np.repeat(np.arange(ENVS), STEPS),
        "episode_step": np.tile(np.arange(STEPS), ENVS),
        "action": rng.integers(0, 2, N),
        "reward": rng.normal(size=N),
        "advantage": rng.normal(size=N),
        "score_return": scores_of(round) if scored else [None] * N,
        "kept": scores_of(round) > -1,
        "valid": np.ones(N, bool),
        "obs": rng.normal(size=(N, 3)).astype(np.float32),
    }


def make_run(path, *, seed=0, arm="ppo", env="CartPole-v1", returns=(), trained=(), rounds=4):
    """A run whose round r has mean evaluation return returns[r] and mean training return trained[r - 1]."""
    metadata = {"env": env, "arm": arm} | ({} if seed is None else {"seed": seed})
    with runs.create(path, metadata) as writer:
        for round in range(len(returns)):
            writer.write_evaluation(round, [returns[round] - 1, returns[round] + 1], [5, 5])
        for round in range(1, max(rounds, len(returns) - 1, len(trained)) + 1):
            writer.write_records(round, records(round, scored=round % 2 == 0))
            mean = trained[round - 1] if trained else None
            writer.write_round(round, {"return_mean": mean, "trust": math.nan, "scored": round % 2 == 0})
    return path


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


@pytest.fixture
def call(capsys):
    """Run the command line: exit code, standard output, standard error."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def answer(call):
    """The JSON that a command prints, which must be all it prints, strict, and a success."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not valid JSON")

    def answer(*arguments):
        code, out, err = call(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out, parse_constant=refuse)

    return answer


@pytest.fixture
def complaint(call):
    """The one-line error that a command ends in."""

    def complaint(*arguments):
        code, out, err = call(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err.removeprefix("error: ").strip()

    return complaint


# top


def test_top_takes_the_last_scored_round_and_the_highest_scores(run, answer):
    result = answer("top", run, "--n", 3)
    assert (result["round"], result["target"]) == (4, "return")
    order = np.argsort(-scores_of(4))[:3]
    assert [(row["rank"], row["env"], row["step"]) for row in result["records"]] == [
        (rank, index // STEPS, index % STEPS) for rank, index in enumerate(order, 1)
    ]
    assert [row["score"] for row in result["records"]] == scores_of(4)[order].tolist()


def test_top_bottom_of_a_round(run, answer):
    result = answer("top", run, "--round", 2, "--bottom", "--n", 100)
    assert [row["score"] for row in result["records"]] == sorted(scores_of(2))


def test_top_prints_a_table_of_100_columns(run, call):
    code, out, _ = call("top", run)
    assert code == 0
    assert "round 4, target return" in out
    assert all(word in out for word in ("env", "step", "obs", "action", "advantage", "kept"))
    assert f"{scores_of(4).max():.4g}" in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--round", 3], "round 3 of .* stores no scores: it was not scored"),
        (["--round", 3, "--target", "return"], "round 3 of .* stores no scores of 'return': it was not scored"),
        (["--round", 9], "round 9 of .* has no records: the rounds with records are 1-4"),
        (["--target", "sequence"], "stores no scores of 'sequence': choose from return"),
        (["--target", "action"], "explain one action with --record ENV:STEP"),
        (["--target", "return", "--record", "0:1"], "add --target action"),
        (["--record", "0:1"], "has no snapshots"),
        (["--target", "action", "--record", "0:1"], "has no snapshots"),
        (["--n", 0], "--n must be at least 1, not 0"),
    ],
)
def test_top_complaints(run, complaint, options, message):
    assert re.search(message, complaint("top", run, *options))


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)


def evaluate(module, obs, actions):
    return rs.Evaluation(torch.log_softmax(module.layer(obs), 1).gather(1, actions[:, None])[:, 0])


@pytest.fixture
def explained_run(tmp_path):
    """A run with a real snapshot of round 2: its path, policy and records."""
    stored = records(2, scored=True)
    policy = rs.Policy(Linear(), evaluate)
    buffer = rs.Records(
        torch.from_numpy(stored["obs"]),
        torch.from_numpy(stored["action"]),
        torch.zeros(N),
        torch.from_numpy(stored["advantage"]).float(),
        ids={"env": stored["env"], "step": stored["step"]},
    )
    optimizer = torch.optim.SGD(policy.module.parameters(), lr=0.1)
    snapshot = Snapshot.take(2, policy, optimizer, buffer, UpdateRule("ppo", n_epochs=1, batch_size=8))
    with runs.create(tmp_path / "explained", {}) as writer:
        for round in (1, 2, 3):
            writer.write_records(round, records(round, scored=True))
            if round == 2:
                writer.write_snapshot(2, snapshot.save)
            writer.write_round(round, {})
    return writer.path, policy, buffer


def test_top_explains_one_action_from_the_snapshot(explained_run, answer, call):
    path, policy, buffer = explained_run
    row = 1 * STEPS + 5
    target = rs.targets.Action(buffer.obs[row : row + 1], buffer.actions[row : row + 1])
    expected = rs.score_records(policy, buffer, target=target, backend="oracle").values

    result = answer("top", path, "--target", "action", "--record", "1:5", "--n", N)
    assert result["round"] == 2  # the last round with a snapshot
    assert (result["explained"]["env"], result["explained"]["step"]) == (1, 5)
    got = {row["env"] * STEPS + row["step"]: row["score"] for row in result["records"]}
    assert [got[index] for index in range(N)] == pytest.approx(expected.tolist(), abs=1e-5)
    _, out, _ = call("top", path, "--target", "action", "--record", "1:5")
    assert f"explained: env 1, step 5: action {int(buffer.actions[row])} in state [" in out


def test_top_of_a_record_that_is_not_there(explained_run, complaint):
    path = explained_run[0]
    options = ("top", path, "--target", "action", "--record")
    assert "env goes from 0 to 3, step from 0 to 7" in complaint(*options, "9:0")
    assert "write ENV:STEP, such as 0:12" in complaint(*options, "0-12")
    assert "the rounds with snapshots are 2" in complaint(*options, "0:1", "--round", 3)


# compare


def test_intervals_are_students():
    interval = intervals.t_interval([1.0, 2.0, 3.0])
    assert interval.value == 2
    assert interval.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t(0.975, 2), sd 1
    assert intervals.t_interval([0.1] * 3) == intervals.Interval(0.1, 0.1, 0.1, 3)
    alone = intervals.t_interval([5.0])
    assert (alone.value, alone.n) == (5, 1)
    assert math.isnan(alone.half_width)


def test_percentiles_are_of_what_is_known():
    found = intervals.percentile_interval(3.0, [math.nan, *range(101)])
    assert (found.value, found.low, found.high) == (3, 2.5, 97.5)
    assert math.isnan(intervals.percentile_interval(3.0, []).low)


def test_compare_pairs_seeds_and_averages_the_right_rounds(tmp_path, answer):
    # 20 rounds: the last tenth is rounds 19 and 20. Round 0 must count nowhere.
    flat = [1000.0] + [2.0] * 18
    for seed, bonus in ((0, 1.0), (1, 3.0), (2, 8.0)):
        make_run(tmp_path / f"a{seed}", seed=seed, arm="ppo", returns=[*flat, 4.0 + seed, 6.0 + seed])
        if seed < 2:
            make_run(tmp_path / f"b{seed}", seed=seed, arm="iif", returns=[*flat, 4 + seed + bonus, 6 + seed + bonus])
    (block,) = answer("compare", *(tmp_path / name for name in ("a0", "a1", "a2", "b0", "b1")))
    ppo, iif = block["arms"]
    assert (block["env"], block["measure"], block["notes"]) == ("CartPole-v1", "evaluation return", [])
    assert (ppo["name"], ppo["runs"], iif["runs"]) == ("ppo", 3, 2)
    assert ppo["final"]["mean"] == pytest.approx(6)  # seeds: 5, 6, 7
    assert ppo["area"]["mean"] == pytest.approx((18 * 2 + 12) / 20)
    assert ppo["final_difference"] is None
    assert iif["final_difference"]["n"] == 2
    assert iif["final_difference"]["mean"] == pytest.approx(2)  # 1 and 3: seed 2 has no partner
    assert iif["final_difference"]["half_width"] == pytest.approx(12.7062047, rel=1e-6)  # t(0.975, 1), sd sqrt 2
    assert iif["area_difference"]["mean"] == pytest.approx(2 * 2 / 20)


def test_compare_expands_folders_splits_environments_and_picks_the_baseline(tmp_path, answer, complaint):
    make_run(tmp_path / "z", arm="ppo", returns=[0, 1.0, 1.0])
    make_run(tmp_path / "a", arm="iif", returns=[0, 2.0, 2.0])
    make_run(tmp_path / "m", env="Acrobot-v1", returns=[0, -5.0])
    (tmp_path / "not a run").mkdir()
    blocks = answer("compare", tmp_path, tmp_path / "z")  # a run given twice counts once
    assert {block["env"]: [arm["name"] for arm in block["arms"]] for block in blocks} == {
        "CartPole-v1": ["ppo", "iif"],  # the oldest first
        "Acrobot-v1": ["ppo"],
    }
    ppo, iif = blocks[0]["arms"]
    assert (ppo["runs"], blocks[0]["baseline"], iif["final_difference"]["mean"]) == (1, "ppo", 1)
    (block,) = answer("compare", tmp_path / "z", tmp_path / "a", "--baseline", "iif")
    assert block["arms"][0]["final_difference"] == {"mean": -1, "half_width": None, "n": 1}
    assert "no run belongs to the arm 'foo': the arms are iif, ppo" in complaint(
        "compare", tmp_path, "--baseline", "foo"
    )


def test_compare_says_when_it_falls_back_to_training_returns(tmp_path, answer):
    # No episode finishes in round 1; none in round 3 either, which repeats round 2.
    make_run(tmp_path / "a", arm="a", trained=[None, 1.0, None, 4.0])
    make_run(tmp_path / "b", arm="b", trained=[2.0, 2.0, 2.0, 2.0], returns=[0, 50.0, 50.0])
    (block,) = answer("compare", tmp_path / "a", tmp_path / "b")
    assert block["measure"] == "training return"
    assert [arm["area"]["mean"] for arm in block["arms"]] == [2.0, 2.0]
    assert block["notes"][0].startswith("no evaluations in a:")
    assert block["notes"][1].endswith("rounds 2-4")


def test_compare_uses_the_rounds_that_all_runs_have_and_says_so(tmp_path, answer, complaint):
    make_run(tmp_path / "a", arm="a", returns=[0, 1.0, 2.0, 30.0])
    make_run(tmp_path / "b", arm="b", returns=[0, 1.0, 2.0])
    (block,) = answer("compare", tmp_path / "a", tmp_path / "b")
    assert block["rounds"] == [0, 1, 2]
    assert [arm["final"]["mean"] for arm in block["arms"]] == [2, 2]
    assert "different rounds: compared over those all have, rounds 1-2" in block["notes"][0]
    make_run(tmp_path / "c", rounds=1)
    assert "no evaluations and no finished episode" in complaint("compare", tmp_path / "c")


def test_compare_counts_a_seed_once_and_runs_without_seed_each(tmp_path, answer):
    for name, value in (("a", 1.0), ("b", 3.0)):
        make_run(tmp_path / name, seed=7, returns=[0, value])
        make_run(tmp_path / f"free-{name}", seed=None, arm="free", returns=[0, value])
    (block,) = answer("compare", *(tmp_path / name for name in ("a", "b", "free-a", "free-b")))
    seeded, free = block["arms"]
    assert (seeded["runs"], seeded["final"]["n"], seeded["final"]["mean"]) == (2, 1, 2.0)
    assert (free["runs"], free["final"]["n"], free["final_difference"]) == (2, 2, None)
    assert "several runs of the same seed count as one" in block["notes"][0]


def test_compare_prints_a_table_and_draws_a_figure(tmp_path, call, complaint):
    for seed in range(3):
        make_run(tmp_path / f"p{seed}", seed=seed, returns=[0.0, 10.0 + seed])
        make_run(tmp_path / f"i{seed}", seed=seed, arm="iif", returns=[0.0, 12.0 + seed])
    code, out, _ = call("compare", tmp_path, "--figure", tmp_path / "curves.png")
    assert code == 0
    assert "11.0 ± 2.5" in out
    assert "final vs ppo" in out
    assert max(map(len, out.replace(str(tmp_path), "").splitlines())) <= 100
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "is not a figure file: end it in .png" in complaint("compare", tmp_path, "--figure", tmp_path / "curves.gif")
    assert "name at least one run" in complaint("compare")


# sql


def test_sql_json_is_a_list_of_rows_with_null_for_nan(run, answer):
    query = "select round, trust, 'inf'::double as up, [1, 2] as list from rounds order by round"
    rows = answer("sql", run, query)
    assert rows == [{"round": round, "trust": None, "up": None, "list": [1, 2]} for round in (1, 2, 3, 4)]
    assert answer("sql", run, query, "--limit", 1) == rows[:1]


def test_sql_prints_a_table_and_how_much_it_left_out(run, call):
    _, out, _ = call("sql", run, "select round, trust from rounds", "--limit", 3)
    assert [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()] == [
        ["1", "nan"],
        ["2", "nan"],
        ["3", "nan"],
        ["3", "of", "4", "rows:", "--limit", "N", "shows", "more"],
    ]
    _, out, _ = call("sql", run, "select * from records limit 2")  # too wide: one row below the other
    assert "row 2" in out
    assert "score_return" in out
    assert max(map(len, out.splitlines())) <= 100


def test_sql_complaints(run, complaint):
    assert "the query failed: Parser Error" in complaint("sql", run, "selec")
    assert "holds no evaluations" in complaint("sql", run, "select * from evaluations")
    assert "--limit must be at least 1" in complaint("sql", run, "select 1", "--limit", "0")


# export


def test_export_writes_every_record_in_each_format(run, tmp_path, call):
    for name in ("out.csv", "out.parquet", "out.json"):
        code, out, _ = call("export", run, "--out", tmp_path / name)
        assert (code, out.startswith(f"{4 * N} records written to")) == (0, True)
    expected = runs.open(run).sql("select * from records").to_arrow_table()
    assert pq.read_table(tmp_path / "out.parquet").equals(expected)
    assert json.loads((tmp_path / "out.json").read_text()) == expected.to_pylist()
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["reward"]) for row in rows] == expected["reward"].to_pylist()
    assert [json.loads(row["obs"]) for row in rows] == expected["obs"].to_pylist()
    assert rows[0]["score_return"] == ""


def test_export_of_a_table_with_nan_is_strict_json(run, tmp_path, call):
    call("export", run, "--table", "rounds", "--out", tmp_path / "rounds.txt", "--format", "json")
    rows = json.loads((tmp_path / "rounds.txt").read_text())
    assert [(row["round"], row["trust"]) for row in rows] == [(1, None), (2, None), (3, None), (4, None)]


def test_export_overwrites_only_when_told(run, tmp_path, call, complaint):
    out = tmp_path / "out.csv"
    out.write_text("mine")
    assert "exists already: choose another file, or add --overwrite" in complaint("export", run, "--out", out)
    assert out.read_text() == "mine"
    assert "could not be written" in complaint("export", run, "--out", tmp_path / "nowhere" / "out.csv")
    assert "end it in .csv, .parquet or .json" in complaint("export", run, "--out", tmp_path / "out.xls")
    assert call("export", run, "--out", out, "--overwrite")[0] == 0
    assert len(out.read_text().splitlines()) == 4 * N + 1


# The command line itself


@pytest.mark.parametrize("command", [("top",), ("compare",), ("sql", "select 1"), ("export", "--out", "x.csv")])
def test_a_folder_that_is_no_run_is_an_error_that_names_runs_near_it(run, complaint, command):
    name, *rest = command
    message = complaint(name, run.parent / "nur", *rest)
    assert "nur is not a run (there is no such folder)" in message
    assert str(run) in message


def test_a_damaged_file_is_named(run, tmp_path, complaint):
    file = run / "records/round-000004.parquet"
    file.write_bytes(file.read_bytes()[:-10])
    for command in (("top", run), ("sql", run, "select * from records"), ("export", run, "--out", tmp_path / "x.csv")):
        assert "round-000004.parquet is damaged" in complaint(*command)
    assert not (tmp_path / "x.csv").exists()


def test_help_lists_every_command_and_needs_none_of_them(capsys):
    modules = {name for name in sys.modules if name.startswith("rollsight.cli.")}
    for arguments in ([], ["--help"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0
        out = capsys.readouterr().out
        assert all(f"\n  {command} " in out for command in COMMANDS)
    assert {name for name in sys.modules if name.startswith("rollsight.cli.")} == modules


@pytest.mark.parametrize("arguments", [["tpo"], ["top"], ["top", "run", "--rund", "3"], ["top", "run", "--round", "x"]])
def test_usage_errors_exit_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (rs.RollsightError("this is\nwrong"), 1, "error: this is wrong\n"),
        (OSError(28, "No space left on device", "runs/a"), 1, "error: runs/a: No space left on device\n"),
        (ModuleNotFoundError("No module named 'duckdb'", name="duckdb"), 1, "'rollsight[cli]'\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(run, call, monkeypatch, error, code, message):
    def fail(path):
        raise error

    monkeypatch.setattr(runs, "open", fail)
    got, out, err = call("top", run)
    assert (got, out) == (code, "")
    assert err.endswith(message)


def test_mistakes_of_ours_keep_their_traceback(run, monkeypatch):
    def fail(path):
        raise ZeroDivisionError

    monkeypatch.setattr(runs, "open", fail)
    with pytest.raises(ZeroDivisionError):
        main(["top", str(run)])


def test_python_m_rollsight_in_a_pipe_that_closes_early(run):
    command = [sys.executable, "-m", "rollsight", "sql", str(run), "select * from range(50000)", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "[\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
