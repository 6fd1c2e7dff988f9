"""`rollsight diagnose`: statistics by hand, A_bar against dynamic programming, and the command as a user meets it."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rollsight import cli, runs
from rollsight.analysis.diagnosis import advantages, pages
from rollsight.analysis.diagnosis import statistics as diagnosis
from rollsight.analysis.diagnosis.advantages import advantage_from
from rollsight.analysis.diagnosis.record import diagnose_record
from rollsight.analysis.diagnosis.round import diagnose_round
from rollsight.analysis.diagnosis.round_data import RoundData
from rollsight.environments.make import make_environment
from rollsight.runs.digests import digest_of
from rollsight.snapshot import Snapshot
from rollsight.tabular import observed_returns, tabular_advantages
from rollsight.training import run as training_run
from rollsight.training.run import RunSettings, run_training

GAMMA = 0.99


def train(folder, env, records, **settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "RECORDS_PER_ROUND", records)
        run_training(RunSettings(env, engine="sb3", eval_episodes=0, snapshots="all", **settings), folder)
    return folder


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "lake"
    return train(folder, "FrozenLake-v1", 512, rounds=2, envs=4, lr=0.2)


# statistics


def test_a_sign_counts_beyond_two_standard_errors():
    a_bar, error = np.array([1.0, 1.0, -1.0, 0.1, 0.0, 2.0]), np.array([0.4, 0.6, 0.1, 0.0, 0.0, 0.1])
    found = diagnosis.agreement(a_bar, error, np.array([-1.0, -1.0, -1.0, -0.1, 1.0, 2.0]))
    # the second is within two errors, and the fifth has no sign
    assert (found.records, found.counted, found.mismatched, found.share) == (6, 4, 2, 0.5)
    assert found.difference == pytest.approx((2 + 2 + 0 + 0.2 + 1 + 0) / 6)
    assert found.error == pytest.approx(0.2)
    assert np.isnan(diagnosis.agreement(*np.empty((3, 0))).share)


def test_choice_takes_the_extremes_and_a_random_sample_of_all():
    scores, eligible = np.arange(100.0), np.arange(100) % 10 > 0
    chosen = diagnosis.choose_records(scores, eligible, 20, np.random.default_rng(0))
    assert chosen.bottom.tolist() == [1, 2, 3, 4, 5]
    assert chosen.top.tolist() == [99, 98, 97, 96, 95]
    assert len(set(chosen.random.tolist())) == 10
    assert eligible[chosen.random].all()
    sampled = np.concatenate(
        [diagnosis.choose_records(scores, eligible, 20, np.random.default_rng(i)).random for i in range(200)]
    )
    assert np.bincount(sampled, minlength=100)[eligible].min() > 5  # extremes are drawn like any other
    few = diagnosis.choose_records(scores, scores < 3, 20, np.random.default_rng(0))
    assert few.rows.tolist() == [0, 1, 2]


def test_quintiles_keep_equal_scores_together():
    scores = np.array([5.0, 0, 0, 0, 0, 0, 0, -1, 4, 3, 99])
    quintile = diagnosis.quintile_of(scores, np.arange(11) < 10)
    assert quintile.tolist() == [4, 2, 2, 2, 2, 2, 2, 0, 4, 3, -1]


def test_the_bootstrap_resamples_units():
    """Ten copies of each record say nothing new: the interval must not become narrower."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=30)
    y = x + 2 * rng.normal(size=30)
    once = diagnosis.correlate(x, y, np.arange(30), np.random.default_rng(0))
    copies = diagnosis.correlate(*(np.repeat(v, 10) for v in (x, y)), np.repeat(np.arange(30), 10), rng)
    assert copies.value == pytest.approx(once.value)
    assert (copies.records, copies.units) == (300, 30)
    assert copies.high - copies.low == pytest.approx(once.high - once.low, rel=0.15)
    assert once.low < once.value < once.high
    assert np.isnan(diagnosis.correlate(np.zeros(5), np.arange(5.0), np.arange(5), rng).value)


def test_harmful_mass_and_phases():
    scores = np.array([-1.0, -3.0, 5.0, -4.0, -9.0])
    eligible = np.array([True, True, True, True, False])
    parts = diagnosis.harmful_mass(scores, np.array([0, 2, 2, -1, 0]), eligible)
    assert [(p.key, p.mass, p.share, p.records) for p in parts] == [(0, -1.0, 0.125, 1), (2, -3.0, 0.375, 2)]
    phases = diagnosis.phase_of(np.array([7, 7, 7, 8]), np.array([0, 5, 19, 3]), {7: 20})
    assert phases.tolist() == [0, 2, 9, -1]


def test_the_papers_tabular_estimate():
    episode, step = np.array([1, 1, 1, 2, 2, 3]), np.array([0, 1, 2, 0, 1, 0])
    reward = np.array([0.0, 0.0, 1.0, 0.0, 2.0, 9.0])
    returns = observed_returns(reward, episode, step, episode < 3, 0.5)
    assert returns[:5].tolist() == [0.25, 0.5, 1.0, 1.0, 2.0]
    assert np.isnan(returns[5])
    states, actions = [b"s", b"t", b"u", b"s", b"t", b"s"], [b"a", b"a", b"a", b"b", b"a", b"a"]
    estimate = tabular_advantages(states, actions, returns)
    # s was left twice with a known end: 0.25 after a and 1 after b. The last record gets the value of its pair.
    assert estimate[[0, 3, 5]].tolist() == [-0.375, 0.375, -0.375]
    assert estimate[[1, 4]].tolist() == [0.0, 0.0]
    assert np.isnan(estimate[2])  # a single visit


def test_repeats_of_the_action_lower_the_error_and_keep_the_mean():
    rng, count, probability = np.random.default_rng(0), 50, 0.6
    found, plain, errors = [], [], []
    for _ in range(2000):
        same = np.concatenate([np.ones(count, bool), rng.random(count) < probability])
        returns = np.where(same, 1.0, 0.0) + rng.normal(size=2 * count)
        _, advantage, error = advantage_from(returns, same, count, probability)
        found.append(advantage)
        errors.append(error)
        plain.append(returns[:count].mean() - returns[count:].mean())
    assert np.mean(found) == pytest.approx(0.4, abs=0.01)
    assert np.std(found) == pytest.approx(np.mean(errors), rel=0.05)
    assert np.std(found) < 0.6 * np.std(plain)
    always = advantage_from(np.array([1.0, 3.0, 5.0, 7.0]), np.ones(4, bool), 2, 1.0)
    assert always == (2.0, -4.0, pytest.approx(np.sqrt(2)))


# against the truth


def exact_moments(run, round, horizon=100):
    """First and second moments of the discounted return in FrozenLake under a round's policy, by dynamic programming.

    q, v: arrays (horizon, 2, states, actions) and (horizon, 2, states), by the steps made since the episode began.
    """
    policy = Snapshot.load(runs.open(run).snapshot_path(round)).policy.module
    with torch.no_grad():
        pi = policy.get_distribution(torch.arange(16)).distribution.probs.double().numpy()
    table = make_environment("FrozenLake-v1").unwrapped.P
    q, v = np.zeros((horizon, 2, 16, 4)), np.zeros((horizon + 1, 2, 16))
    for t in reversed(range(horizon)):
        for s in range(16):
            for a in range(4):
                for p, after, reward, terminated in table[s][a]:
                    first, second = (0.0, 0.0) if terminated else v[t + 1, :, after]
                    q[t, 0, s, a] += p * (reward + GAMMA * first)
                    q[t, 1, s, a] += p * (reward**2 + 2 * reward * GAMMA * first + GAMMA**2 * second)
        v[t] = (pi * q[t]).sum(-1)
    return q, v


def test_a_bar_agrees_with_dynamic_programming(lake):
    found = diagnose_round(RoundData(runs.open(lake), 2), records=40, branches=50)
    assert (found.method, found.gamma, found.unit) == ("set", GAMMA, "distinct (s, a)")
    q, v = exact_moments(lake, 2)
    deviations = []
    for r in found.records:
        (q1, q2), (v1, v2) = q[r.episode_step, :, r.obs, r.action], v[r.episode_step, :, r.obs]
        # The true standard error of Q_bar - V_bar: that from few and rare rewards may well be 0.
        error = np.sqrt((q2 - q1**2 + v2 - v1**2) / found.branches)
        deviations.append((r.a_bar - (q1 - v1)) / max(error, 1e-9))
        assert r.q_bar == pytest.approx(q1, abs=4 * np.sqrt((q2 - q1**2) / found.branches) + 1e-9)
        assert r.a_bar_error < 3 * error + 1e-9
    assert np.abs(deviations).max() < 4
    assert len({r.obs for r in found.records}) > 5
    assert max(abs(r.a_bar) for r in found.records) > 0.05


def test_a_corrupted_advantage_is_flagged(lake, tmp_path):
    q, v = exact_moments(lake, 2)
    wrong = tmp_path / "wrong"
    shutil.copytree(lake, wrong)
    path = wrong / "records" / "round-000002.parquet"
    table = pq.ParquetFile(path).read()
    columns = table.to_pydict()
    truth = np.array(
        [
            q[t, 0, s, a] - v[t, 0, s]
            for t, s, a in zip(columns["episode_step"], columns["obs"], columns["action"], strict=True)
        ]
    )
    row = int(np.abs(truth).argmax())
    columns["advantage"][row] = -5 * truth[row]
    columns["score_return"][row] = -1000.0
    listed = (wrong / "SHA256SUMS").read_text().replace(digest_of(path), "{}")
    pq.write_table(pa.table(columns, schema=table.schema), path)
    (wrong / "SHA256SUMS").write_text(listed.format(digest_of(path)))
    found = diagnose_round(RoundData(runs.open(wrong), 2), records=8, branches=100)
    worst = found.group("bottom")[0]
    assert (worst.row, worst.mismatch, worst.quintile) == (row, True, 0)
    assert found.groups["bottom"].mismatched >= 1
    assert found.harm["env"][int(columns["env"][row])].share > 0.9


# as a user meets it


def call(capsys, *arguments):
    code = cli.main(["diagnose", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_tables_figures_and_json(lake, capsys):
    options = ["--round", 2, "--records", 16, "--branches", 10, "--processes", 1]
    code, out, err = call(capsys, lake, *options)
    assert (code, err) == (0, "")
    for said in ("state was set", "bottom", "highest fifth", "Spearman", "tabular", "harm by tenth of the episode"):
        assert said in out
    folder = lake.with_name("lake-diagnosis-round2")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["diagnosis.html", "harm.png", "quintiles.png", "records.png", "scatter.png"]
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in names if name.endswith("png"))
    assert max(map(len, out.splitlines()[:12])) <= 130

    code, out, err = call(capsys, lake, *options)
    assert (code, out) == (1, "")
    assert "exists already" in err

    # The same numbers from two processes, and from this one.
    code, out, err = call(capsys, lake, *options[:-1], 2, "--overwrite", "--json")
    result = json.loads(out)
    assert (code, err, len(result["figures"])) == (0, "", 5)
    assert {"groups", "quintiles", "tabular", "harm", "method", "how", "steps"} <= result.keys()
    assert sum(part["share"] for part in result["harm"]["action"]) == pytest.approx(1)
    page = (folder / "diagnosis.html").read_text()
    assert "<script src" not in page  # nothing is fetched
    worst = result["records"][0]
    assert f"env {worst['env']}, step {worst['step']}" in page
    here = diagnose_round(RoundData(runs.open(lake), 2), records=16, branches=10)
    assert result["records"] == runs.jsonable(here.records)
    assert result["correlation"] == runs.jsonable(here.correlation, non_finite_as_null=True)

    # Kept for the explorer, and the same for a record alone.
    kept = runs.stored_results(lake, "diagnosis")["round-2"]
    assert kept["records"] == result["records"]
    ended = []
    alone = diagnose_record(
        RoundData(runs.open(lake), 2), worst["row"], branches=10, on_ended=lambda *counts: ended.append(counts)
    )
    assert (alone["branches"], alone["how"], alone["notes"]) == (10, result["how"], result["notes"])
    assert alone["records"] == [{**here.records[0].__dict__, "groups": ()}]
    assert ended[-1] == (20, 20)


def test_the_page_shows_every_record_fifth_and_share(lake):
    found = diagnose_round(RoundData(runs.open(lake), 2), records=16, branches=10)
    scatter, fifths, harm = (panel.figure for panel in pages.panels(found))
    groups = {trace.name.split(" (")[0]: trace for trace in scatter.data}
    assert list(groups) == ["random", "top", "bottom", "wrong sign"]
    bottom = found.group("bottom")
    # Axes are scaled, in the order of the values and with their signs.
    assert np.all(np.diff(groups["bottom"].x) >= 0)
    assert np.sign(groups["bottom"].x).tolist() == np.sign([r.score for r in bottom]).tolist()
    assert np.sign(groups["bottom"].y).tolist() == np.sign([r.a_bar * r.a_hat for r in bottom]).tolist()
    assert all(f"step {r.step}" in text for r, text in zip(bottom, groups["bottom"].hovertext, strict=True))
    assert len(groups["wrong sign"].x) == sum(bool(r.mismatch) for r in found.records)
    assert list(scatter.layout.xaxis.tickvals) == sorted(scatter.layout.xaxis.tickvals)
    assert len(fifths.data[0].x) == 7
    assert fifths.data[1].y[0] == found.groups["bottom"].difference
    assert [list(bar.y) for bar in harm.data[::2]] == [
        [part.share for part in found.harm[name]] for name in ("action", "phase", "env")
    ]


def test_when_time_runs_out_it_says_how_far_it_got(lake, monkeypatch, capsys, tmp_path):
    estimate, calls = advantages.Worker.estimate, []

    def until_five(self, point):
        calls.append(point)
        return estimate(self, point) if len(calls) <= 5 else None

    monkeypatch.setattr(advantages.Worker, "estimate", until_five)
    options = ["--records", 12, "--branches", 4, "--processes", 1, "--seconds", 60, "--out", tmp_path / "out"]
    code, out, _ = call(capsys, lake, *options, "--json")
    result = json.loads(out)
    assert (code, result["done"], len(result["records"])) == (0, 5, 5)
    assert f"before {result['asked'] - 5} of the records were branched" in result["notes"][0]
    monkeypatch.setattr(advantages.Worker, "estimate", lambda self, point: None)
    code, _, err = call(capsys, lake, *options, "--overwrite")
    assert (code, "no record was done within 60 s" in err) == (1, True)


@pytest.mark.parametrize(
    ("env", "method", "said"),
    [("MiniGrid-Empty-5x5-v0", "copy", "environment copied"), ("LunarLander-v3", "replay", "for every branch")],
)
def test_environments_that_are_copied_or_replayed(env, method, said, tmp_path, capsys):
    run = train(tmp_path / "run", env, 256, rounds=1)
    code, out, _ = call(capsys, run, "--records", 4, "--branches", 2, "--processes", 1, "--json")
    result = json.loads(out)
    assert (code, result["method"], result["notes"]) == (0, method, [])
    assert said in result["how"]
    assert (result["tabular"] is None) == (method == "replay")
    assert (tmp_path / "run-diagnosis-round1" / "records.png").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--round", 9], "round 9"),
        (["--records", 3], "--records must be at least 4, not 3"),
        (["--branches", 1], "--branches must be at least 2, not 1"),
        (["--seconds", 0], "--seconds must be positive, not 0"),
        (["--processes", 0], "--processes must be at least 1, not 0"),
        (["--seed", -1], "--seed must be at least 0, not -1"),
        (["--out", "RUN/figures"], "lies in the run folder"),
    ],
)
def test_bad_input_is_one_sentence(lake, capsys, options, said, tmp_path):
    out = [] if "--out" in options else ["--out", tmp_path / "out"]
    given = [str(lake / "figures") if option == "RUN/figures" else option for option in options]
    code, out, err = call(capsys, lake, *given, *out)
    assert (code, out) == (1, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_without_snapshots_or_with_another_environment(lake, tmp_path, capsys):
    bare, other = tmp_path / "bare", tmp_path / "other"
    shutil.copytree(lake, bare)
    shutil.rmtree(bare / "snapshots")
    assert "has no snapshots" in call(capsys, bare)[2]
    shutil.copytree(lake, other)
    metadata = json.loads((other / "run.json").read_text())
    metadata["env_kwargs"]["is_slippery"] = False
    (other / "run.json").write_text(json.dumps(metadata))
    assert "does not reproduce what the run recorded" in call(capsys, other, "--round", 2)[2]
