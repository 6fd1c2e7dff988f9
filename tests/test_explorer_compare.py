"""The page that compares runs: figures of the analyses, pairs by identity, what is not there."""

import json

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("dash", reason="the explorer needs Dash (pip install 'rollsight[explorer]')")

from rollsight import runs
from rollsight.analysis.learning_curves import compare_runs
from rollsight.explorer import Reading, create_app
from rollsight.explorer.addresses import Address
from rollsight.explorer.comparing import compared, interventions
from rollsight.explorer.context import Context
from rollsight.explorer.figures import comparison as figures
from rollsight.explorer.pages import compare
from rollsight.explorer.pages.compare.sides import pair_of
from rollsight.explorer.pairing import differing, identities, paired
from rollsight.studies.metrics import reduction

ROUNDS = 10


def write(folder, arm, seed, gain):
    """A run whose return rises by `gain` in every round, 2 seconds of training each."""
    metadata = {"host": "stable-baselines3 2.9", "env": "Line-v0", "algo": "ppo", "arm": arm, "seed": seed}
    with runs.create(folder, metadata) as writer:
        for round in range(1, ROUNDS + 1):
            records = {
                "round": np.full(4, round),
                "env": np.array([0, 1, 0, 1]),
                "step": np.array([0, 0, 1, 1]),
                "action": [0, 1, 0, 1] if arm == "ppo" else [0, 1, 1, 1],
                "reward": np.ones(4),
                "score_return": np.array([1.0, -1.0, 0.5, np.nan]) * (1 if arm == "ppo" else 3),
                "kept": np.array([True, arm == "ppo", True, True]),
                "valid": np.ones(4, bool),
                "episode_start": ["a", "b", None, None],
            }
            writer.write_records(round, records)
            times = {"time_collect": 1.0, "time_train": 1.0, "time_eval": 50.0, "time_write": 9.0}
            writer.write_round(round, {"records": 4, "return_mean": gain * round + seed, "target": "return", **times})


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1, 2):
        write(folder / f"ppo-{seed}", "ppo", seed, 1.0)
        write(folder / f"iif-{seed}", "iif", seed, 2.0)
    with runs.create(folder / "new", {"host": "stable-baselines3 2.9", "env": "Line-v0", "arm": "new", "seed": 0}):
        pass
    text = {"round": [1, 1], "prompt": ["x", "x"], "completion": ["a", "b"], "reward": [0.0, 1.0]}
    with runs.create(folder / "text", {"host": "rollsight", "env": "Line-v0", "arm": "text", "seed": 0}) as writer:
        writer.write_records(1, text)
        writer.write_round(1, {"reward_mean": 0.5})
    return Context(Reading([folder]))


def at(names, **query):
    return Address("compare", query={"runs": ",".join(names), **query})


def texts(part):
    if isinstance(part, list | tuple):
        return "".join(map(texts, part))
    return part if isinstance(part, str) else texts(getattr(part, "children", None) or "")


def flat(part):
    if isinstance(part, list | tuple):
        for one in part:
            yield from flat(one)
    elif hasattr(part, "to_plotly_json"):
        yield part
        yield from flat(getattr(part, "children", None))


EVERY = [f"{arm}-{seed}" for seed in (0, 1, 2) for arm in ("ppo", "iif")]


def test_the_figures_are_those_of_the_analyses(context):
    folders = tuple(context.reading.path(name) for name in EVERY)
    (one,) = compared(folders, ("1",) * 6, "ppo")
    (expected,) = compare_runs([runs.open(folder) for folder in folders], "ppo")
    assert [arm.final for arm in one.comparison.arms] == [arm.final for arm in expected.arms]
    assert one.comparison.arms[1].area_difference == expected.arms[1].area_difference
    # The baseline ends at 10 and the other arm is there in round 5, with the same seconds a round.
    contrast = one.contrasts["iif"]
    assert contrast.pairs["se_peak"].value == pytest.approx(0.5)
    assert contrast.pairs["rt_paper"].value == pytest.approx(0.5)
    one_pair = reduction(one.curves["ppo"]["1"], one.curves["iif"]["1"])
    assert contrast.pairs["se_ave"].value == pytest.approx(one_pair.se_ave, abs=0.05)
    assert one.curves["ppo"]["1"]["seconds"].tolist() == [2.0 * round for round in range(1, ROUNDS + 1)]


def test_curves_are_paired_by_seed(context):
    folders = tuple(context.reading.path(name) for name in EVERY)
    (one,) = compared(folders, ("1",) * 6, "ppo")
    means = {arm.name: (one.comparison.rounds, arm.mean, arm.half_width) for arm in one.comparison.arms}
    figure = figures.learning(one.curves, means, "ppo", "training return")
    drawn = {trace.name: np.asarray(trace.y) for trace in figure.data if trace.name}
    assert drawn["iif, seed 2"].tolist() == [float(round) for round in range(1, ROUNDS + 1)]
    assert "ppo (3 seeds)" in drawn
    gains = figures.gains({"final return": {"iif": one.comparison.arms[1].final_difference}})
    assert gains.data[0].x == (10.0,)


def test_the_page_shows_arms_gains_and_pairs(context):
    page = compare.layout(context, at(EVERY, baseline="ppo"))
    said = texts(page)
    assert "Gains over ppo" in said
    assert "50 %" in said
    assert "rollsight intervene" in said, "how to make an intervention where there is none"
    grid = next(part for part in flat(page) if getattr(part, "id", None) == "compare-pairs")
    assert [row["name"] for row in grid.rowData] == ["env 0, step 0", "env 1, step 0", "env 0, step 1", "env 1, step 1"]
    assert grid.rowData[0]["gap"] == 2.0
    assert [row["changed"] for row in grid.rowData] == ["nothing", "kept", "action", "nothing"]
    assert grid.rowData[3]["gap"] is None
    assert "4 pairs; different: action in 1, kept in 1." in said
    only = compare.layout(context, at(EVERY, baseline="ppo", only="changed"))
    assert len(next(part for part in flat(only) if getattr(part, "id", None) == "compare-pairs").rowData) == 2


def test_runs_without_an_arm_are_compared_by_their_names_without_the_seeds(tmp_path):
    names = [f"{arm}-{seed}" for arm in ("slow", "fast") for seed in (3, 4)]
    for name in names:
        metadata = {"host": "stable-baselines3 2.9", "env": "Line-v0", "seed": int(name[-1])}
        with runs.create(tmp_path / name, metadata) as writer:
            for round in (1, 2):
                records = {"round": [round] * 2, "env": [0, 1], "step": [0, 0], "reward": [1.0, 1.0]}
                writer.write_records(round, records)
                writer.write_round(round, {"records": 2, "return_mean": float(round)})
    page = compare.layout(Context(Reading([tmp_path])), at(names, baseline="fast"))
    select = next(part for part in flat(page) if getattr(part, "id", None) == "compare-baseline")
    assert (select.data, select.value) == (["slow", "fast"], "fast")
    assert "Gains over fast" in texts(page)


def test_the_other_side_has_the_same_seed_unless_chosen(context):
    names = ["ppo-0", "ppo-1", "iif-1", "iif-0"]
    assert (pair_of(context, at(names), names).a, pair_of(context, at(names), names).b) == ("ppo-0", "iif-0")
    assert pair_of(context, at(names, a="iif-0"), names).b == "ppo-0"
    chosen = pair_of(context, at(names, a="ppo-1", b="iif-0", round="3", by="episode"), names)
    assert (chosen.a, chosen.b, chosen.round, chosen.by) == ("ppo-1", "iif-0", 3, "episode")
    assert pair_of(context, at(names, a="ppo-1", b="ppo-1"), names).b == "iif-1"


def test_records_are_paired_by_identity():
    a = pa.table({"prompt": ["x", "y", "x"], "completion": ["1", "2", "3"]})
    b = pa.table({"prompt": ["z", "x", "x", "x"], "completion": ["9", "1", "8", "7"]})
    pairs = paired(a, b, "prompt")
    assert (pairs.a.tolist(), pairs.b.tolist(), pairs.only_a, pairs.only_b) == ([0, 2], [1, 2], 1, 2)
    assert differing(pairs, a, b, ("completion", "reward"))["completion"].tolist() == [False, True]
    steps = pa.table({"env": [0], "step": [0], "episode_start": pa.nulls(1, pa.string())})
    assert identities(a, b) == ["prompt"]
    assert identities(steps, steps) == ["step"]
    assert identities(a, steps) == []


def test_episodes_are_paired_by_how_they_began(context):
    page = compare.layout(context, at(["ppo-0", "iif-0"], by="episode"))
    grid = next(part for part in flat(page) if getattr(part, "id", None) == "compare-pairs")
    assert sorted(row["name"] for row in grid.rowData) == ["a", "b"]


def test_interventions_are_drawn_where_one_is_kept(tmp_path):
    write(tmp_path / "run", "ppo", 0, 1.0)
    folder = runs.results_folder(tmp_path / "run", "intervention", "selection")
    folder.mkdir(parents=True)
    difference = {"mean": 1.5, "low": 1.0, "high": None}
    arm = {"returns": [[1.0, 2.0], [3.0, 4.0]], "dropped": [1, 1], "steps": [2, 2]}
    result = {
        "env": "Line-v0", "rule": "negative <b>units</b>", "semantic": "repack", "target": "return",
        "normalisation": "raw", "orders": 2, "episodes": 2, "seed": 0,
        "rounds": [{"round": 3, "records": 4, "arms": {
            "unfiltered": {**arm, "difference": None}, "selection": {**arm, "difference": difference},
        }}],
        "summary": {"selection": difference}, "over_random": difference,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    broken = folder.parent / "other"
    broken.mkdir()
    (broken / "result.json").write_text('{"rounds": 3}')
    (kept,) = interventions(tmp_path / "run").values()
    by_round, by_arm = figures.intervention(kept)
    assert by_round.data[0].y == (0.0, 0.0)
    assert by_arm.data[-1].y == (1.5,)
    write(tmp_path / "other", "iif", 0, 1.0)
    page = texts(compare.layout(Context(Reading([tmp_path])), at(["run", "other"])))
    assert "Intervention: run, selection" in page
    assert "negative <b>units</b>" in page


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "Choose at least two runs"),
        (["ppo-0", "../../etc", "gone"], "Choose at least two runs"),
        (["ppo-0", "new"], "new has no complete round yet"),
        (["ppo-0", "text"], "One run holds steps and the other completions"),
    ],
)
def test_what_cannot_be_compared_is_said(context, names, said):
    address = at(names, round="1") if names else Address("compare")
    assert said in texts(compare.layout(context, address))


def test_a_run_that_grows_is_followed(tmp_path):
    write(tmp_path / "one", "ppo", 0, 1.0)
    with runs.create(tmp_path / "two", {"host": "own", "env": "Line-v0", "arm": "iif", "seed": 0}) as writer:
        app = create_app(Reading([tmp_path]))
        shown = client_of(app)
        before = shown("", ["one", "two"], "ppo", "1")
        assert "two has no complete round yet" in str(before)
        token = before["compare-token"]["data"]
        assert shown(token, ["one", "two"], "ppo", "1") is None
        writer.write_round(1, {"records": 4, "return_mean": 41.5})
        after = shown(token, ["one", "two"], "ppo", "7")
        assert "41.5" in str(after["compare-arms"])
        assert after["compare-round"]["data"] == [str(number) for number in range(ROUNDS, 0, -1)]


def client_of(app):
    """Calls the callback that follows runs as the page does."""
    key = next(key for key in app.callback_map if "compare-arms.children" in key)
    given = app.callback_map[key]
    client = app.server.test_client()

    def ask(token, names, baseline, round):
        values = {"compare-token": token, "compare-runs": names, "compare-baseline": baseline, "compare-round": round}
        body = {
            "output": key,
            "outputs": [
                {"id": part, "property": name}
                for part, name in (("compare-arms", "children"), ("compare-round", "data"), ("compare-token", "data"))
            ],
            "inputs": [{**given["inputs"][0], "value": 1}],
            "changedPropIds": ["compare-poll.n_intervals"],
            "state": [{**one, "value": values.get(one["id"], "/compare")} for one in given["state"]],
        }
        answer = client.post("/_dash-update-component", json=body, base_url="http://localhost")
        return answer.get_json()["response"] if answer.status_code == 200 else None

    return ask


def test_nothing_to_compare_in_an_empty_folder(tmp_path):
    assert "There is no run here yet" in texts(compare.layout(Context(Reading([tmp_path])), Address("compare")))
