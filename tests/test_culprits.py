"""Which rollouts taught a behaviour: scores against the definition, sums, the check by replays, resuming, errors."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import rollsight as rs
from rollsight import cli, runs
from rollsight.analysis import culprits
from rollsight.analysis.culprits import scores as scoring
from rollsight.analysis.culprits.groups import flat
from rollsight.errors import RollsightError
from rollsight.explorer import Reading
from rollsight.explorer.addresses import Address, address_of, path_of
from rollsight.explorer.context import Context
from rollsight.explorer.figures.culprits import influence, shares
from rollsight.explorer.pages import PAGES
from rollsight.explorer.pages import culprits as page
from rollsight.snapshot import Snapshot
from rollsight.training import run as training_run
from rollsight.training.run import RunSettings, run_training

RIGHT = "select round, env, step from records where action = 1 and round = 2 and advantage > 0"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Three rounds of CartPole, half of the records that hurt dropped."""
    path = tmp_path_factory.mktemp("runs") / "pole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "RECORDS_PER_ROUND", 128)
        settings = RunSettings(
            "CartPole-v1", "negative:0.5", engine="sb3", rounds=3, envs=2, eval_episodes=0, optimizer="adam", lr=3e-3
        )
        run_training(replace(settings, snapshots="all"), path)
    return path


@pytest.fixture
def run(path):
    return runs.open(path)


def snapshot(run, round):
    return Snapshot.load(run.snapshot_path(round))


def test_influence_is_the_mean_of_the_pairs_scores_and_zero_where_dropped(run):
    behaviour = culprits.of_query(run, RIGHT)
    (found,) = culprits.score_rounds(run, [behaviour])
    assert [one.round for one in found] == [1, 2, 3]
    for one in found:
        frozen = snapshot(run, one.round)
        target = rs.targets.Action(behaviour.obs, behaviour.actions, each=True)
        each = rs.score_records(frozen.policy, frozen.records, target, frozen.rule.policy_term()).values.mean(1)
        kept = np.array(run.records(one.round)["kept"].to_pylist())
        assert 0 < kept.sum() < len(kept)
        np.testing.assert_array_equal(one.weights > 0, kept)
        np.testing.assert_allclose(one.values, np.where(kept, each.numpy(), 0), rtol=1e-3, atol=1e-5)
        with torch.no_grad():
            pairs = behaviour.target().measured_on(frozen.records)
            assert one.log_prob == pytest.approx(float(frozen.policy(pairs).log_prob.mean()), rel=1e-5)


def test_several_behaviours_in_one_pass_are_those_of_each_alone(run, monkeypatch, tmp_path):
    left = culprits.of_query(run, RIGHT.replace("action = 1", "action = 0"))
    one = culprits.of_records(run, {1: [(0, 3)]})
    monkeypatch.setattr(scoring, "results_folder", lambda path, analysis, key: tmp_path / "together" / key)
    together = culprits.score_rounds(run, [left, one])
    monkeypatch.setattr(scoring, "results_folder", lambda path, analysis, key: tmp_path / "alone" / key)
    for behaviour, found in zip((left, one), together, strict=True):
        (alone,) = culprits.score_rounds(run, [behaviour])
        for a, b in zip(alone, found, strict=True):
            np.testing.assert_allclose(a.values, b.values, rtol=1e-4, atol=1e-6)


def test_groups_of_pairs_are_one_number_for_each_pair():
    for groups, each in (([0, 1], True), ([0, 1, 1], False)):
        with pytest.raises(RollsightError, match=r"groups has shape .*; give one integer for each of the 3 pairs"):
            rs.targets.Action(torch.zeros(3, 2), torch.zeros(3), each=each, groups=groups)


def test_groups_add_up_to_all_influence(run):
    (found,) = culprits.score_rounds(run, [culprits.of_query(run, RIGHT)])
    values, trained = flat(found)
    table = run.rows("records", ["env", "action"])
    for by in ("env", "action", "round", "episode", "record"):
        groups = culprits.gather(run, found, by)
        assert sum(one.influence for one in groups) == pytest.approx(values.sum(), rel=1e-6)
        assert sum(one.share for one in groups) == pytest.approx(1)
        assert sum(one.records for one in groups) == trained.sum()
        assert [one.influence for one in groups] == sorted((one.influence for one in groups), reverse=True)
    mine = np.array(table["action"].to_pylist()) == 1
    (right,) = (one for one in culprits.gather(run, found, "action") if one.value == 1)
    assert right.positive == pytest.approx(np.maximum(values[mine], 0).sum())
    assert right.negative == pytest.approx(np.minimum(values[mine], 0).sum())
    best = culprits.gather(run, found, "record", 1)[0]
    round, env, step = map(int, best.value.split(":"))
    at = found[round - 1].values
    records = run.records(round)
    where = (np.array(records["env"]) == env) & (np.array(records["step"]) == step)
    assert at[where].item() == values.max() == best.influence


def test_replays_without_the_records_that_teach_confirm_them_and_without_their_opposites_do_not(run):
    behaviour = culprits.of_query(run, RIGHT)
    (found,) = culprits.score_rounds(run, [behaviour])
    highest = {one.round: one.values >= np.quantile(one.values, 0.7) for one in found}
    lowest = {one.round: one.values <= np.quantile(one.values, 0.2) for one in found}
    teaching = culprits.check(run, behaviour, highest, draws=2)
    assert all(one.difference < 0 for one in teaching.rounds)
    assert teaching.difference.value == pytest.approx(np.mean([one.difference for one in teaching.rounds]))
    assert teaching.verdict.startswith(teaching.outcome)
    assert culprits.check(run, behaviour, lowest, draws=2).difference.value > 0
    (second,) = (one for one in teaching.rounds if one.round == 2)
    (third,) = (one for one in teaching.rounds if one.round == 3)
    assert second.trained == pytest.approx(third.before, rel=1e-5)  # a replay ends where the next round begins
    weights = torch.from_numpy((found[1].weights > 0) & ~highest[2]).float()
    replayed = snapshot(run, 2).replay("repack", weights).policy
    assert second.without_culprits == behaviour.log_prob(replayed, snapshot(run, 2).records)
    assert second.left_out == int((highest[2] & (found[1].weights > 0)).sum())


def test_a_check_needs_records_to_leave_out_and_others_to_keep(run):
    behaviour = culprits.of_records(run, {1: [(0, 3)]})
    with pytest.raises(RollsightError, match="leave out single records, or a smaller group"):
        culprits.check(run, behaviour, {1: np.ones(128, bool), 2: np.zeros(128, bool)})


def test_an_interrupted_call_goes_on_where_it_was(run, monkeypatch, tmp_path):
    monkeypatch.setattr(scoring, "results_folder", lambda path, analysis, key: tmp_path / key)
    behaviour = culprits.of_records(run, {2: [(1, 5)]})

    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        culprits.score_rounds(run, [behaviour], interrupt)
    _first, second = sorted((tmp_path / behaviour.key).iterdir())
    second.write_bytes(second.read_bytes()[:50])  # as a full disk leaves it
    loaded, real = [], Snapshot.load
    monkeypatch.setattr(Snapshot, "load", lambda file: loaded.append(file.stem) or real(file))
    (found,) = culprits.score_rounds(run, [behaviour])
    assert loaded == ["round-000002", "round-000003"]
    (again,) = culprits.score_rounds(run, [behaviour])
    assert len(loaded) == 2
    assert all(np.array_equal(a.values, b.values) for a, b in zip(found, again, strict=True))


def test_states_of_a_round_without_a_snapshot_are_those_stored(run, path, tmp_path, monkeypatch):
    whole = culprits.of_records(run, {2: [(1, 5), (0, 7)]})
    monkeypatch.setattr(type(run), "snapshot_rounds", property(lambda self: [1, 3]))
    stored = culprits.of_records(run, {2: [(1, 5), (0, 7)]})
    assert torch.equal(stored.obs, whole.obs)
    assert torch.equal(stored.actions, whole.actions)
    assert stored.key == whole.key


def test_the_command_prints_keeps_and_names_culprits(path, capsys):
    options = ["--record", "2:1:5", "--by", "env", "record", "--top", "3", "--rounds", "2", "--draws", "1"]
    assert cli.main(["culprits", str(path), *options, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    kept = runs.stored_results(path, "culprits")[printed["key"]]
    assert kept["rounds"] == printed["rounds"]
    assert printed["check"]["semantic"] == "repack"
    assert printed["check"]["counterfactual"] == "replay"
    assert len(printed["records"]) == 3
    best = printed["records"][0]
    row = runs.open(path).records(best["round"]).slice(best["row"], 1).to_pylist()[0]
    assert [row[name] for name in ("env", "step", "action")] == [best[name] for name in ("env", "step", "action")]
    first, second, _ = printed["rounds"]
    assert first["after"] == second["before"]
    assert cli.main(["culprits", str(path), *options, "--without", "env"]) == 0
    shown = capsys.readouterr().out
    assert "When it was learnt" in shown
    assert "the records of env" in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "name one behaviour"),
        (["--behaviour", "select round, env, step from records where action = 7"], "never occurs"),
        (["--behaviour", "select action from records"], "no column round and no env and no step"),
        (["--record", "9:0:1"], "has no round 9"),
        (["--record", "1:5:1"], "no record 1:5:1: in round 1 env goes from 0 to 1"),
        (["--record", "1:0:1", "--by", "colour"], "'colour' is not a column of the records"),
        (["--record", "1:0:1", "--by", "obs"], "'obs' holds lists"),
        (["--record", "1:0:1", "--share", "2"], "--share 2.0 must lie between 0 and 1"),
    ],
)
def test_mistakes_are_said_in_a_sentence(path, options, said, capsys):
    assert cli.main(["culprits", str(path), *options]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("host", "said"), [("trl 1.0", "attach(trainer"), ("stable-baselines3 2", "--snapshots all")])
def test_runs_without_snapshots_say_what_to_do(tmp_path, host, said, capsys):
    metadata = {"host": host} | ({} if host.startswith("trl") else {"env": "CartPole-v1"})
    with runs.create(tmp_path / "run", metadata) as writer:
        writer.write_records(1, {"round": [1], "env": [0], "step": [0], "kept": [True], "valid": [True]})
        writer.write_round(1, {"records": 1})
    assert cli.main(["culprits", str(tmp_path / "run"), "--record", "1:0:0"]) == 1
    assert said in capsys.readouterr().err


def spelled(parts):
    return json.dumps(parts, default=lambda part: part.to_plotly_json())


def test_the_page_offers_computes_and_shows_a_behaviour(path):
    context = Context(Reading([path.parent]))
    address = address_of("/runs/pole/culprits", "?record=3:1:9")
    assert path_of(address) == "/runs/pole/culprits?record=3%3A1%3A9"
    offered = spelled(PAGES["culprits"].layout(context, address))
    assert "rollsight culprits" in offered
    assert "--record 3:1:9" in offered
    steps = []
    page.compute(str(path), "3:1:9", lambda done, total: steps.append((done, total)))
    assert steps[-1] == (3 + 3 * 5, 3 + 3 * 5)
    assert steps == sorted(steps)
    (kept,) = (one for one in runs.stored_results(path, "culprits").values() if one["behaviour"] == "3:1:9")
    shown = spelled(PAGES["culprits"].layout(context, address))
    best = kept["records"][0]
    assert f"/runs/pole/record/{best['round']}/{best['row']}" in shown
    assert kept["check"]["verdict"].split(": ")[1][1:] in shown
    assert shown == spelled(PAGES["culprits"].layout(context, address))
    chosen = Address("culprits", "pole", query={"behaviour": kept["key"]})
    assert f"/runs/pole/record/{best['round']}/{best['row']}" in spelled(PAGES["culprits"].layout(context, chosen))
    curves = {trace.name: trace for trace in influence(kept).data}
    assert list(curves["sum"].y) == [one["predicted"] for one in kept["rounds"]]
    bars = {trace.name: trace for trace in shares("env", kept["groups"]["env"]).data}
    assert sum(bars["share of the positive influence"].x) == pytest.approx(1)


def test_the_page_of_a_run_without_snapshots_says_what_to_do(tmp_path):
    with runs.create(tmp_path / "bare", {"env": "CartPole-v1"}) as writer:
        writer.write_records(1, {"round": [1], "env": [0], "step": [0], "kept": [True], "valid": [True]})
        writer.write_round(1, {"records": 1})
    shown = spelled(PAGES["culprits"].layout(Context(Reading([tmp_path])), Address("culprits", "bare")))
    assert "--snapshots all" in shown
