"""Interventions: replays in arms, common episodes, intervals, `rollsight intervene`. Rounds are short to be quick."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributions

import rollsight as rs
from rollsight import cli, runs
from rollsight.analysis.intervention import arms as intervention
from rollsight.analysis.intervention import pages
from rollsight.analysis.intervention import run as interventions
from rollsight.analysis.intervention.run import InterventionSettings, run_intervention
from rollsight.cli.record_lists import read_record_list
from rollsight.environments.make import make_environments
from rollsight.errors import RollsightError
from rollsight.playing import common_episodes
from rollsight.playing.common_episodes import CommonEpisodes, sample
from rollsight.selection import DropNegative
from rollsight.snapshot import Snapshot
from rollsight.streams import Purpose
from rollsight.training import run as training_run
from rollsight.training.run import RunSettings, run_training


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "pole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "RECORDS_PER_ROUND", 256)
        settings = RunSettings(
            "CartPole-v1", engine="sb3", rounds=3, envs=4, eval_episodes=0, optimizer="adam", lr=3e-3
        )
        run_training(replace(settings, snapshots="all"), path)
    return path


@pytest.fixture
def snapshot(run):
    return Snapshot.load(runs.open(run).snapshot_path(2))


def settings(run, **changes):
    return InterventionSettings(run, **{"rounds": (2, 3), "orders": 2, "episodes": 4, **changes})


def pole(count):
    return make_environments("CartPole-v1", count)


def returns(result, round=0):
    return {name: arm.returns.tolist() for name, arm in result.rounds[round].arms.items()}


def test_an_order_of_its_own_is_repeatable_and_keyed(snapshot):
    def end(snapshot, order):
        return torch.cat([p.flatten() for p in snapshot.replay(order=order).parameters.values()])

    recorded, one, two = end(snapshot, None), end(snapshot, 0), end(snapshot, 1)
    assert torch.equal(one, end(snapshot, 0))
    assert not torch.equal(one, two)
    assert not torch.equal(one, recorded)
    assert not torch.equal(one, end(replace(snapshot, round=9), 0))
    assert torch.equal(recorded, end(snapshot, None))


@pytest.mark.parametrize("semantic", ["repack", "mask"])
def test_dropping_nothing_makes_no_difference_at_all(run, semantic):
    result = run_intervention(settings(run, rounds=(2,), p=0.0, semantic=semantic))
    arms = result.rounds[0].arms
    assert set(arms) == {"unfiltered", "selection", "random", "permuted"}
    for name, change in result.summary.items():
        assert arms[name].dropped == (0, 0)
        assert np.array_equal(arms[name].returns, arms["unfiltered"].returns)
        assert (change.mean, change.low, change.high) == (0, 0, 0)
    assert np.std(arms["unfiltered"].returns) > 0


def test_the_arms_of_a_round(snapshot):
    rule = DropNegative(0.5)
    valid = torch.ones(len(snapshot.records), dtype=torch.bool)
    valid[::5] = False
    partly = replace(snapshot, records=replace(snapshot.records, valid=valid))
    for frozen in (snapshot, partly):
        records = frozen.records
        arms, again, other = (intervention.arms_by_rule(frozen, rule, order) for order in (0, 0, 1))
        size = intervention.dropped(arms["selection"], records)
        assert intervention.dropped(arms["random"], records) == size > 10
        assert intervention.dropped(arms["unfiltered"], records) == 0
        assert bool((arms["unfiltered"] == 1).all())
        assert all(torch.equal(arms[name], again[name]) for name in arms)
        assert torch.equal(arms["selection"], other["selection"])
        for control in ("random", "permuted"):
            assert not torch.equal(arms[control], other[control])
            assert not torch.equal(arms[control], arms["selection"])
        # Any callable is a rule; its random control leaves out the same number of records.
        mine = intervention.arms_by_rule(frozen, lambda scores: rule(scores), 0)
        assert torch.equal(mine["selection"], arms["selection"])
        assert intervention.dropped(mine["random"], records) == size


def test_permuted_advantages_are_those_of_the_scores_only(snapshot):
    """With two equal halves of advantages swapped by the permutation or not, the scores are those of such records."""
    key = (0, snapshot.round, Purpose.INTERVENTION_PERMUTATION, 0)
    scores = intervention.scores_of(snapshot, key)
    order = torch.from_numpy(np.random.default_rng(key).permutation(len(snapshot.records)))
    permuted = replace(snapshot, records=snapshot.records.with_advantages(snapshot.records.advantages[order]))
    torch.testing.assert_close(scores.values, intervention.scores_of(permuted).values)
    assert not torch.allclose(scores.values, intervention.scores_of(snapshot).values)


def test_equal_policies_play_equal_episodes_whoever_played_before(snapshot, monkeypatch):
    one, two = snapshot.policy.module, snapshot.replay(order=0).policy.module
    episodes = CommonEpisodes(pole, 7, (0, 2))
    first, second = episodes(one), episodes(two)
    assert not np.array_equal(first, second)
    assert np.array_equal(episodes(one), first)  # and in the other order
    torch.manual_seed(5), np.random.seed(5)
    monkeypatch.setattr(common_episodes, "_AT_ONCE", 3)
    fewer = CommonEpisodes(pole, 7, (0, 2))
    assert np.array_equal(fewer(two), second)
    assert np.array_equal(fewer(one), first)
    assert not np.array_equal(CommonEpisodes(pole, 7, (1, 2))(one), first)
    # Common numbers: the episodes of the two policies go together more than those of independent ones.
    assert np.array_equal(CommonEpisodes(pole, 3, (0, 2))(one), first[:3])


def test_actions_follow_their_distribution():
    torch.manual_seed(0)
    n = 20_000

    def uniform(size):
        return torch.rand(n, size, dtype=torch.float64)

    logits = torch.tensor([1.0, 0.0, -1.0]).expand(n, 3)
    category = distributions.Categorical(logits=logits)
    share = torch.bincount(sample(category, uniform), minlength=3) / n
    torch.testing.assert_close(share, category.probs[0], atol=0.01, rtol=0)
    both = sample([category, distributions.Categorical(logits=-logits)], uniform)
    assert both.shape == (n, 2)
    torch.testing.assert_close(torch.bincount(both[:, 1], minlength=3) / n, share.flip(0), atol=0.015, rtol=0)
    bits = sample(distributions.Bernoulli(logits=logits), uniform).float().mean(0)
    torch.testing.assert_close(bits, torch.sigmoid(logits[0]), atol=0.015, rtol=0)
    normal = sample(distributions.Normal(logits, 2 * torch.ones(n, 3)), uniform)
    torch.testing.assert_close(normal.mean(0), logits[0], atol=0.06, rtol=0)
    torch.testing.assert_close(normal.std(0), torch.full((3,), 2.0), atol=0.06, rtol=0)
    # Coupled: nearly equal policies nearly always act alike, far more often than two independent draws.
    fixed = torch.rand(n, 3, dtype=torch.float64)
    near = distributions.Categorical(logits=logits + torch.tensor([0.05, 0.0, 0.0]))
    assert float((sample(category, lambda _: fixed) == sample(near, lambda _: fixed)).float().mean()) > 0.98


@pytest.mark.parametrize("form", ["csv", "parquet", "json", "top", "lines"])
def test_a_list_is_the_selection_of_the_same_records(run, snapshot, form, tmp_path, capsys):
    expected = run_intervention(settings(run, rounds=(2,), p=0.5, orders=1, episodes=3)) if form == "csv" else None
    gone = (DropNegative(0.5)(intervention.scores_of(snapshot)).weights == 0).nonzero().flatten()
    rows = [{"round": 2, "env": e, "step": s} for e, s in torch.stack(
        [snapshot.records.ids[name][gone] for name in ("env", "step")], 1
    ).tolist()]  # fmt: skip
    path = tmp_path / f"list.{ {'lines': 'txt', 'top': 'json'}.get(form, form) }"
    match form:
        case "json" | "top":
            path.write_text(json.dumps(rows if form == "json" else {"round": 2, "records": rows}))
        case "lines":
            path.write_text("\n".join(f"2:{row['env']}:{row['step']}" for row in rows) + "\n")
        case "csv":
            path.write_text("step,env,round\n" + "".join(f"{r['step']},{r['env']},2\n" for r in rows))
        case "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(rows), path)
    assert read_record_list(path) == {2: tuple(sorted((r["env"], r["step"]) for r in rows))}
    if expected is None:
        return
    arguments = ["intervene", str(run), "--drop-records", str(path), "--orders", "1", "--episodes", "3"]
    assert cli.main([*arguments, "--processes", "1", "--json"]) == 0
    (round,) = json.loads(capsys.readouterr().out)["rounds"]
    assert round["arms"]["listed"]["dropped"] == [len(rows)]
    assert round["arms"]["listed"]["returns"] == expected.rounds[0].arms["selection"].returns.tolist()
    assert set(round["arms"]) == {"unfiltered", "listed", "random"}


def test_intervals_cover_what_they_should(monkeypatch):
    monkeypatch.setattr(intervention, "_RESAMPLES", 400)
    rng = np.random.default_rng(0)
    base = rng.normal(size=(3, 40))
    same = intervention.difference(base + 2, base, (0,))
    assert (same.mean, same.low, same.high) == pytest.approx((2, 2, 2))
    covered, over = 0, 0
    for trial in range(100):
        noise = rng.normal(size=(20, 1)) + rng.normal(size=(1, 40)) + 1.5
        interval = intervention.difference(base[:1] + noise, np.broadcast_to(base[:1], noise.shape), (trial,))
        covered += interval.low <= 1.5 <= interval.high
        rounds = [noise + rng.normal() for noise in np.full((15, 2, 5), 1.5)]
        interval = intervention.over_rounds(rounds, [(trial, r) for r in range(15)])
        over += interval.low <= 1.5 <= interval.high
    assert 0.86 < covered / 100 < 1
    assert 0.84 < over / 100 < 1
    one = intervention.over_rounds([noise], [(3,)])
    assert one == intervention.difference(noise, np.zeros_like(noise), (3,))


def test_an_interrupted_intervention_continues(run, tmp_path, monkeypatch):
    played = []

    def play(task):
        played.append((task.round, task.order))
        values = np.random.default_rng(played[-1]).normal(size=(3, 5)).tolist()
        arms = {
            name: {"returns": numbers, "dropped": 1, "steps": 2}
            for name, numbers in zip(("unfiltered", "selection", "random"), values, strict=True)
        }
        return {"records": 256, "normalisation": "none", "arms": arms}

    monkeypatch.setattr(interventions, "_play", play)
    whole = run_intervention(settings(run))

    def stop(done, tasks):
        assert tasks == 4
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_intervention(settings(run), out=tmp_path / "out", on_progress=stop)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["round-000002.json", "settings.json"]
    played.clear()
    result = run_intervention(settings(run), out=tmp_path / "out")
    assert played == [(3, 0), (3, 1)]
    for round in (0, 1):
        assert returns(result, round) == returns(whole, round)
    assert result.summary == whole.summary
    with pytest.raises(RollsightError, match=r"episodes 4 instead of 6"):
        run_intervention(settings(run, episodes=6), out=tmp_path / "out")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.tex").touch()
    with pytest.raises(RollsightError, match="is not empty"):
        run_intervention(settings(run), out=tmp_path / "else")


def test_processes_side_by_side_change_nothing(run):
    small = settings(run, rounds=(3,), episodes=2)
    assert returns(run_intervention(small, processes=2)) == returns(run_intervention(small))


def test_intervene_prints_and_draws(run, tmp_path, capsys):
    arguments = ["intervene", str(run), "--rounds", "3,2", "--orders", "1", "--episodes", "3", "--processes", "1"]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for word in ("p = 1 of the negative-score records", "repack", "selection - random", "counterfactual: replay"):
        assert word in printed
    assert (tmp_path / "out" / "difference.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "difference.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<script src" not in page  # nothing is fetched
    for word in ("p = 1 of the negative-score records", "Counterfactual: replay", "selection, round 2, episode 0"):
        assert word in page
    assert cli.main([*arguments, "--out", str(tmp_path / "out"), "--json"]) == 0
    captured = capsys.readouterr().out
    result = json.loads(captured)
    assert captured == (tmp_path / "out" / "result.json").read_text()
    assert [one["round"] for one in result["rounds"]] == [2, 3]
    named = {name: result[name] for name in ("semantic", "counterfactual", "target", "normalisation")}
    assert named == {
        "semantic": "repack",
        "counterfactual": "replay",
        "target": "return",
        "normalisation": "scores buffer, update minibatch",
    }
    selection = result["rounds"][0]["arms"]["selection"]
    mean = np.mean(selection["returns"]) - np.mean(result["rounds"][0]["arms"]["unfiltered"]["returns"])
    assert selection["difference"]["mean"] == pytest.approx(mean)
    assert selection["steps"][0] < result["rounds"][0]["arms"]["unfiltered"]["steps"][0]


def test_the_page_shows_every_episode_and_mean(run):
    result = run_intervention(settings(run))
    by_round, by_arm = (panel.figure for panel in pages.panels(result))
    boxes = {trace.name: trace for trace in by_round.data if trace.type == "box"}
    means = [trace for trace in by_round.data if trace.type == "scatter"]
    assert list(boxes) == ["selection", "random", "permuted"]
    for (name, box), mean in zip(boxes.items(), means, strict=True):
        changes = [one.arms[name].returns - one.arms["unfiltered"].returns for one in result.rounds]
        assert list(box.y) == pytest.approx(np.concatenate([change.mean(0) for change in changes]).tolist())
        assert len(set(box.x)) == len(result.rounds)
        known = [one.arms[name].difference for one in result.rounds]
        assert list(mean.y) == [one.mean for one in known]
        assert list(mean.error_y.array) == [one.high - one.mean for one in known]
    assert list(by_round.layout.xaxis.ticktext) == ["2", "3"]
    assert list(by_arm.data[-1].y) == [change.mean for change in result.summary.values()]
    assert all(len(trace.y) == 4 for trace in by_arm.data[:-1])  # two rounds in two orders


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "7"], "no round 7: its rounds are 1-3"),
        (["--rounds", "two"], "--rounds two"),
        (["--p", "1.5"], "p=1.5"),
        (["--orders", "0"], "--orders is 0"),
        (["--figure", "curve.doc"], "curve.doc is not a figure file: end it in .png, .pdf, .svg, .html"),
        (["--drop-records", "none.csv"], "none.csv is not a file"),
        (["--drop-records", "LIST:2:9:0"], "1 listed record(s) do not exist (2:9:0)"),
        (["--drop-records", "LIST:2:nine:0"], "'2:nine:0' names no record"),
        (["--drop-records", "LIST:2:0:0", "--rounds", "3"], "no record of round 3"),
        (["--drop-records", "LIST:2:0:0", "--p", "0.5"], "leave out --p"),
    ],
)
def test_bad_input_is_one_sentence(run, arguments, said, capsys, tmp_path):
    if (place := arguments[1]).startswith("LIST:"):
        (tmp_path / "list.txt").write_text(place.removeprefix("LIST:"))
        arguments = [arguments[0], str(tmp_path / "list.txt"), *arguments[2:]]
    assert cli.main(["intervene", str(run), "--processes", "1", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


def test_a_run_without_snapshots_or_environment_is_said(run, tmp_path):
    with runs.create(tmp_path / "bare", {"env": "CartPole-v1"}) as writer:
        writer.write_round(1, {"return_mean": 1.0})
    for rounds, said in ([], "has no snapshots"), (["--rounds", "1"], "has no snapshots"):
        with pytest.raises(RollsightError, match=said):
            cli_intervene(tmp_path / "bare", rounds)
    (tmp_path / "moved").mkdir()
    metadata = json.loads((run / "run.json").read_text())
    (tmp_path / "moved" / "run.json").write_text(json.dumps({**metadata, "env": None}))
    for folder in ("rounds", "snapshots"):
        (tmp_path / "moved" / folder).symlink_to(run / folder)
    with pytest.raises(RollsightError, match="does not say which environment"):
        run_intervention(settings(tmp_path / "moved"))
    (tmp_path / "moved" / "run.json").write_text(json.dumps({**metadata, "env": "Acrobot-v1"}))
    with pytest.raises(RollsightError, match=r"Acrobot-v1 is .*AcrobotEnv here, and .* trained in .*CartPoleEnv"):
        run_intervention(settings(tmp_path / "moved"))
    del metadata["environment"]  # as earlier versions wrote it
    (tmp_path / "moved" / "run.json").write_text(json.dumps({**metadata, "env": "Acrobot-v1"}))
    with pytest.raises(RollsightError, match="wrapped in a way that its name does not say"):
        run_intervention(settings(tmp_path / "moved"))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
@pytest.mark.parametrize("command", ["intervene", "diagnose"])
def test_an_interrupt_of_the_parent_alone_ends_its_workers(run, command, tmp_path):
    """As from an editor's stop button: nothing trains on, and nothing waits for ever."""
    more = ("--episodes", "1000000") if command == "intervene" else ("--branches", "100000", "--out", str(tmp_path))
    parent = subprocess.Popen(
        [sys.executable, "-m", "rollsight", command, str(run), "--processes", "2", *more],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore interrupts, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        while len(workers_of(parent.pid)) < 2:
            assert parent.poll() is None, parent.communicate()[1]
            time.sleep(0.1)
        workers = workers_of(parent.pid)
        time.sleep(1)
        os.kill(parent.pid, signal.SIGINT)
        _, error = parent.communicate(timeout=30)
    finally:
        if parent.poll() is None:
            os.killpg(parent.pid, signal.SIGKILL)
    assert parent.returncode == 130
    assert "Traceback" not in error
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def workers_of(pid):
    """The children that `multiprocessing` started, without its own helper."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def test_whole_episodes_are_dropped(run):
    snapshot = Snapshot.load(runs.open(run).snapshot_path(3))
    arms = intervention.arms_by_rule(snapshot, DropNegative(1.0, "episode"), order=0)
    episodes = snapshot.records.ids["episode"]
    scores = rs.score_records(snapshot.policy, snapshot.records, objective=snapshot.rule.policy_term())
    for number, total in zip(episodes.unique().tolist(), scores.sum_by("episode").tolist(), strict=True):
        assert (arms["selection"][episodes == number] == float(total >= 0)).all()
    result = run_intervention(settings(run, unit="episode", rounds=(3,)))
    assert result.rounds[0].arms["selection"].dropped == (int((arms["selection"] == 0).sum()),) * 2


def cli_intervene(path, arguments):
    from rollsight.cli.intervene import chosen_rounds

    return chosen_rounds(runs.open(path), arguments[1] if arguments else None, None)
