"""How behaviour forms: roughness, embeddings, change points, `rollsight phases`. Rounds are short to be quick."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import rollsight as rs
from rollsight import cli, runs
from rollsight.analysis.phases import formation as phases
from rollsight.analysis.phases import pages
from rollsight.analysis.phases.change_points import SHORTEST, find_changes
from rollsight.analysis.phases.similarity import embed, permuted_roughness, roughness, similarity_graph
from rollsight.errors import RollsightError
from rollsight.snapshot import Snapshot
from rollsight.training import run as training_run
from rollsight.training.run import RunSettings, run_training


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "pole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "RECORDS_PER_ROUND", 128)
        settings = RunSettings(
            "CartPole-v1", engine="sb3", rounds=3, envs=2, eval_episodes=0, optimizer="adam", lr=3e-3
        )
        run_training(replace(settings, snapshots="all"), path)
    return path


def load(run, round):
    return Snapshot.load(runs.open(run).snapshot_path(round))


def brute_force(influence, embeddings, neighbours):
    """The definition, in loops."""
    n = len(influence)
    distance = [[math.dist(a, b) for b in embeddings] for a in embeddings]
    near = [sorted((j for j in range(n) if j != i), key=lambda j: distance[i][j])[:neighbours] for i in range(n)]
    edges = [(i, j) for i in range(n) for j in range(i + 1, n) if j in near[i] or i in near[j]]
    sigma = float(np.median([distance[i][j] for i, j in edges]))
    scaled = [value / max(abs(v) for v in influence) for value in influence]
    weights = [math.exp(-(distance[i][j] ** 2) / sigma**2) for i, j in edges]
    total = sum(w * (scaled[i] - scaled[j]) ** 2 for w, (i, j) in zip(weights, edges, strict=True))
    return total / sum(weights)


@pytest.mark.parametrize("neighbours", [1, 4, 100])
def test_roughness_is_the_definition(neighbours):
    rng = np.random.default_rng(0)
    embeddings, influence = rng.normal(size=(30, 5)), rng.exponential(size=30)
    graph = similarity_graph(embeddings, neighbours)
    assert roughness(influence, graph) == pytest.approx(brute_force(influence, embeddings, neighbours), rel=1e-12)
    assert roughness(7 * influence, graph) == pytest.approx(roughness(influence, graph))


def test_roughness_of_constant_smooth_and_random_influence():
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(300, 2))
    graph = similarity_graph(embeddings, 20)
    assert roughness(np.full(300, 0.3), graph) == 0
    smooth = 2 + embeddings[:, 0] / np.abs(embeddings[:, 0]).max()
    null = permuted_roughness(smooth, graph, 100, (0,))
    assert roughness(smooth, graph) < 0.3 * null.min()
    assert np.array_equal(null, permuted_roughness(smooth, graph, 100, (0,)))
    inside = 0
    for seed in range(40):
        noise = np.random.default_rng((2, seed)).exponential(size=300)
        low, high = np.quantile(permuted_roughness(noise, graph, 100, (seed,)), (0.025, 0.975))
        inside += low <= roughness(noise, graph) <= high
    assert inside >= 33  # 38 expected


def test_equal_states_are_similar_and_others_are_not():
    """Tabular environments repeat states: the median distance is 0, the limit of the weights 0 or 1."""
    embeddings = np.repeat(np.eye(3), 10, axis=0)
    graph = similarity_graph(embeddings, 5)
    assert roughness(np.repeat([1.0, 2.0, 3.0], 10), graph) == 0
    assert roughness(np.tile([1.0, 2.0], 15), graph) > 0


def test_embeddings_are_the_input_of_the_action_head(run):
    policy, records = load(run, 1).policy, load(run, 1).records
    embeddings, layer = embed(policy, records)
    assert layer == "action_net"
    module = policy.module
    with torch.no_grad():
        latent = module.mlp_extractor.forward_actor(module.extract_features(records.obs))
    np.testing.assert_allclose(embeddings, latent.numpy(), rtol=1e-6)
    before = [len(m._forward_hooks) for m in module.modules()]
    assert sum(before) == 0


def test_a_policy_without_a_linear_layer_is_said(run):
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(2))
            self.value = nn.Linear(4, 1)  # called, but not by the log-probabilities

    def evaluate(module, obs, actions):
        return rs.Evaluation(module.logits.log_softmax(0)[actions], None, module.value(obs).flatten())

    with pytest.raises(RollsightError, match=r"depend on no nn\.Linear"):
        embed(rs.Policy(Table(), evaluate), load(run, 1).records)


def test_planted_changes_are_found():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(30, 2))
    one[12:] += 3
    (change,) = find_changes(one)
    assert change.at == 12
    assert change.p <= 0.01
    assert max(change.columns) <= 0.01
    two = rng.normal(size=(40, 2))
    two[10:, 0] -= 4
    two[25:, 1] += 4
    first, second = find_changes(two)
    assert (first.at, second.at) == (10, 25)
    assert first.columns[0] < 0.05 < first.columns[1]
    assert second.columns[1] < 0.05 < second.columns[0]


def test_changes_are_seldom_found_in_noise():
    """At alpha = 0.05 in 5 % of the series of exchangeable rounds; 200 series, so 20 are over three deviations up."""
    rng = np.random.default_rng(3)
    found = sum(bool(find_changes(rng.standard_t(4, size=(15, 2)), seed=seed)) for seed in range(200))
    assert 1 <= found <= 20
    assert find_changes(np.zeros((20, 2))) == []
    assert find_changes(rng.normal(size=(2 * SHORTEST - 1, 2)) + 9 * np.arange(2 * SHORTEST - 1)[:, None]) == []


def formations(rough, log_prob, influence):
    """Rounds 5, 10, ... with these means and a little noise."""
    rng, blank = np.random.default_rng(0), np.zeros((1, 2))
    result = []
    for index, (r, p, m) in enumerate(zip(rough, log_prob, influence, strict=True), 1):
        r, p = np.array([r, p]) + 0.01 * rng.normal(size=2)
        result.append(phases.Formation(5 * index, p, m, 9, r, (0, 1), None, None, [], blank, blank))
    return result


def test_phases_are_named_only_where_they_are_seen():
    steps = [0.9] * 8 + [0.4] * 8 + [0.1] * 8
    rising = [-2.0] * 8 + [-1.0] * 8 + [-0.1] * 8
    changes, found, verdict = phases.mark_phases(formations(steps, rising, steps))
    assert [change.round for change in changes] == [45, 85]
    assert [(p.name, p.first, p.last) for p in found] == [
        ("association", 5, 40),
        ("clustering", 45, 80),
        ("saturation", 85, 120),
    ]
    assert verdict.startswith("three phases are supported, with changes at rounds 45 and 85")
    _, found, verdict = phases.mark_phases(formations(steps[::-1], rising, steps))
    assert [p.name for p in found] == ["segment 1", "segment 2", "segment 3"]
    assert "not the paper's course" in verdict
    changes, found, verdict = phases.mark_phases(formations([0.9] * 8 + [0.2] * 8, [-1.0] * 16, [1.0] * 16))
    assert [change.round for change in changes] == [45]
    assert "one change is supported, at round 45" in verdict
    assert changes[0].p_roughness < 0.01 < changes[0].p_log_prob
    assert phases.mark_phases(formations([0.5] * 16, [-1.0] * 16, [1.0] * 16))[1] == []
    _, found, verdict = phases.mark_phases(formations([0.5] * 5, [-1.0] * 5, [1.0] * 5))
    assert found == []
    assert "5 rounds are too few" in verdict


def test_consistency_counts_action_and_advantage():
    actions, advantages = torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert phases.consistent(actions, advantages, torch.tensor([0])).tolist() == [True, False, False, True]
    pairs = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 1.0], [3.0, 1.0]])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert phases.consistent(pairs, advantages, pairs[:1]).tolist() == [True, False, False, True]
    assert phases.consistent(pairs + 0.5, advantages, pairs[:1] + 0.5) is None


def test_a_rounds_formation_follows_from_its_snapshot(run):
    first, final = load(run, 1), load(run, 3).replay().policy
    obs, action = first.records.obs[7:8], first.records.actions[7:8]
    snapshots = [load(run, round) for round in (1, 2, 3)]
    result = phases.development(snapshots, final, obs, action, top=4, permutations=50)
    one = result.rounds[0]
    target = rs.targets.Action(obs, action)
    influence = rs.score_records(first.policy, first.records, target, backend="oracle").values.double()
    assert one.log_prob == pytest.approx(float(first.records.log_probs[7]), rel=1e-5)
    assert one.positive == int((influence > 0).sum())
    assert one.influence == pytest.approx(float(influence.abs().mean()), rel=1e-4)
    best = influence.argsort(descending=True)[:4].tolist()
    envs, steps = first.records.ids["env"], first.records.ids["step"]
    assert [(row["env"], row["step"]) for row in one.top] == [(int(envs[i]), int(steps[i])) for i in best]
    embeddings = embed(final, first.records)[0]
    up = (influence > 0).numpy()
    expected = brute_force(influence.numpy()[up], embeddings[up], 20)
    assert one.roughness == pytest.approx(expected, rel=1e-3)
    normal = rs.objectives.PPO().prepare(first.records).advantages
    agrees = [bool((normal[i] > 0) == (first.records.actions[i] == action[0])) for i in best]
    assert one.consistency == pytest.approx(np.mean(agrees))
    assert one.places.shape == (4, 2)
    check_page(result)
    assert [r.round for r in result.rounds] == [1, 2, 3]
    assert result.embedding == "action_net"


def check_page(result):
    course, where = (panel.figure for panel in pages.panels(result))
    traces = {trace.name: trace for trace in course.data}
    assert list(traces["pi(a|s)"].y) == [math.exp(one.log_prob) for one in result.rounds]
    assert list(traces["mean |influence|"].y) == [one.influence for one in result.rounds]
    assert list(traces["roughness"].y) == [one.roughness for one in result.rounds]
    low, high = zip(*(one.null for one in result.rounds), strict=True)
    assert list(traces["at random, 95 %"].y) == [*low, *reversed(high)]
    best = [row for one in result.rounds for row in one.top]
    assert list(traces["top records"].y) == [row["influence"] for row in best]
    for row, text in zip(best, traces["top records"].hovertext, strict=True):
        assert f"{row['env']}:{row['step']}" in text
    # the slider: of each round its two traces, and always the star
    assert len(where.data) == 2 * len(result.rounds) + 1
    for index, step in enumerate(where.layout.sliders[0].steps):
        visible = np.flatnonzero(step.args[0]["visible"]).tolist()
        assert visible == [2 * index, 2 * index + 1, 2 * len(result.rounds)]
        np.testing.assert_array_equal(where.data[2 * index + 1].x, result.rounds[index].places[:, 0])


def test_the_page_shades_phases_and_bears_rounds_without_a_roughness():
    steps, rising = [0.9] * 8 + [0.4] * 8 + [0.1] * 8, [-2.0] * 8 + [-1.0] * 8 + [-0.1] * 8
    rounds = formations(steps, rising, steps)
    rounds[3] = replace(rounds[3], roughness=None, null=None)
    marked = phases.mark_phases(rounds)
    result = phases.Development(rounds, 0.0, np.zeros(2), "head", "log pi", "raw", 20, *marked)
    course = pages.panels(result)[0].figure
    names = [note.text for note in course.layout.annotations]
    assert names == ["association", "clustering", "saturation"]
    assert len(course.layout.shapes) == 3 * len(names)  # over each of the three parts
    assert 20 not in {trace.name: trace for trace in course.data}["roughness"].x


def test_phases_prints_draws_and_takes_a_record_or_a_pair(run, tmp_path, capsys):
    arguments = ["phases", str(run), "--permutations", "40"]
    assert cli.main([*arguments, "--record", "2:1:5", "--out", str(tmp_path / "out"), "--json"]) == 0
    captured = capsys.readouterr().out
    assert captured == (tmp_path / "out" / "result.json").read_text()
    assert (tmp_path / "out" / "phases.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "phases.html").read_text()
    assert "<script src" not in page  # nothing is fetched
    assert "pole: action" in page
    by_record = json.loads(captured)
    row = runs.open(run).records(2).to_pylist()[64 + 5]
    assert by_record["explained"] == {"record": "2:1:5", "obs": row["obs"], "action": row["action"]}
    obs, figure = json.dumps(row["obs"]), tmp_path / "phases.svg"
    assert cli.main([*arguments, "--obs", obs, "--action", str(row["action"]), "--json"]) == 0
    by_pair = json.loads(capsys.readouterr().out)
    assert by_pair["rounds"] == by_record["rounds"]
    assert cli.main([*arguments, "--obs", obs, "--action", str(row["action"]), "--figure", str(figure)]) == 0
    printed = capsys.readouterr().out
    for word in ("roughness", "3 rounds are too few", "action_net", "after round 3"):
        assert word in printed
    assert figure.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--obs", "[1, 2]", "--action", "0"], "--obs has shape (2,) and the run's have (4,)"),
        (["--obs", "[1, 2, 3, 4]", "--action", "0.5"], "--action 0.5 must be whole"),
        (["--obs", "left", "--action", "0"], "--obs left is not a list of numbers"),
        (["--obs", "[1, 2, 3, 4]"], "either --obs and --action, or --record"),
        (["--record", "2:0:0", "--action", "1"], "either --obs and --action, or --record"),
        (["--record", "2:9:0"], "no record 9:0: env goes from 0 to 1"),
        (["--record", "9:0:0"], "has no round 9"),
        (["--record", "0:12"], "write ROUND:ENV:STEP"),
        (["--record", "2:0:0", "--figure", "phases.doc"], "phases.doc is not a figure file"),
        (["--record", "2:0:0", "--top", "0"], "--top is 0"),
    ],
)
def test_bad_input_is_one_sentence(run, arguments, said, capsys):
    assert cli.main(["phases", str(run), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


def test_a_run_without_snapshots_is_said(tmp_path, capsys):
    with runs.create(tmp_path / "bare", {"env": "CartPole-v1"}) as writer:
        writer.write_round(1, {"return_mean": 1.0})
    assert cli.main(["phases", str(tmp_path / "bare"), "--record", "1:0:0"]) == 1
    assert "has no snapshots" in capsys.readouterr().err
