"""A round's page: what it counts and draws, and that a filtered table, its files and its queries have the same rows."""

import csv
import io
import json
import shlex

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import BufferReader

from rollsight import runs
from rollsight.cli import main
from rollsight.errors import RollsightError
from rollsight.explorer import Reading, filtering
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.exports import exported
from rollsight.explorer.figures import scores as figures
from rollsight.explorer.figures.strip import places, strip
from rollsight.explorer.filtering import Chosen, between, equal
from rollsight.explorer.pages import PAGES
from rollsight.explorer.pages.round import columns, facts, pictures, table
from rollsight.explorer.rounds import cut_of, episode_ends, masses, round_of, thirds

ENVS, STEPS, LIMIT = 2, 40, 10
NOTES = ["it's", 'a "quote"', "'; drop table records; --", "Ärger", None]


def a_round(number):
    """Records of two environments, whose episodes end after 7 steps or at the limit of 10; one row is invalid."""
    random = np.random.default_rng(number)
    step, env = (part.ravel() for part in np.meshgrid(np.arange(STEPS), np.arange(ENVS), indexing="ij"))
    length = np.where(env == 0, 7, LIMIT)
    episode, episode_step = 100 * env + step // length, step % length
    scores = random.normal(size=len(step)).astype(np.float32)
    scores[5] = np.nan
    valid = np.arange(len(step)) != 5
    over = (episode - 100 * env + 1) * length <= STEPS
    return {
        "round": np.full(len(step), number), "env": env, "step": step, "episode": episode,
        "episode_step": episode_step, "action": random.integers(3, size=len(step)),
        "reward": np.ones(len(step)), "advantage": random.normal(size=len(step)).astype(np.float32),
        "score_return": scores, "score_own": random.normal(size=len(step)),
        "kept": ~(scores < -0.8) & valid, "valid": valid,
        "episode_return": np.where(over, length.astype(float), np.nan),
        "obs": random.normal(size=(len(step), 2)).astype(np.float32),
        "note": [NOTES[i % len(NOTES)] for i in range(len(step))],
    }  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = tmp_path_factory.mktemp("runs") / "steps"
    metadata = {"env": "Some-v0", "host": "stable-baselines3 2.7", "max_episode_steps": LIMIT}
    with runs.create(made, metadata) as writer:
        for number in (1, 2, 3):
            writer.write_records(number, a_round(number))
            dropped = {"target": "return", "semantic": "mask", "message": "fewer than <b>asked</b>"}
            writer.write_round(number, {"records": ENVS * STEPS, **dropped})
    return made


@pytest.fixture(scope="module")
def context(path):
    return Context(Reading([path.parent]))


@pytest.fixture(scope="module")
def round(context):
    return round_of(context.reading, "steps", 2)


def number(how, value, **more):
    return {"filterType": "number", "type": how, "filter": value, **more}


def text(how, value=None):
    return {"filterType": "text", "type": how, **({} if value is None else {"filter": value})}


def chosen_by(round, name):
    """The rows that a case must give, by NumPy, in buffer order."""
    scores, notes = round.scores, round.table["note"].to_pylist()
    return {
        "all": np.ones(len(round), bool),
        "hurt": scores < 0,
        "between": (scores >= -0.5) & (scores < 0.25),
        "range": (round.column("step") >= 3) & (round.column("step") <= 5),
        "dropped": round.status == "dropped",
        "invalid": ~round.table["valid"].to_numpy(zero_copy_only=False),
        "last": thirds(round) == "last",
        "either": np.isin(round.column("action"), (0, 2)),
        "quote": np.array([note == "'; drop table records; --" for note in notes]),
        "search": np.array([note is not None and "quote" in note for note in notes]),
        "none": np.array([note is None for note in notes]),
        "several": (scores < 0) & (round.status == "kept") & (round.column("env") == 1),
    }[name]


CASES = {
    "all": {},
    "hurt": {"score_return": number("lessThan", 0)},
    "between": {"score_return": between(-0.5, 0.25, False)},
    "range": {"step": number("inRange", 3, filterTo=5)},
    "dropped": {"status": equal("text", "dropped")},
    "invalid": {"valid": {"filterType": "text", "type": "no"}},
    "last": {"phase": equal("text", "last")},
    "either": {"action": {"operator": "OR", "conditions": [number("equals", 0), number("equals", 2)]}},
    "quote": {"note": equal("text", "'; drop table records; --")},
    "search": {"search": text("contains", "QUOTE")},
    "none": {"note": text("blank")},
    "several": {
        "score_return": number("lessThan", 0),
        "status": equal("text", "kept"),
        "env": number("equals", 1),
    },
}


@pytest.mark.parametrize("name", CASES)
def test_the_table_and_its_queries_have_the_same_rows(path, round, name, capsys):
    query = filtering.sql(round.table, 2, Chosen(CASES[name]))
    records = filtering.rows(round.table, query)
    assert records.tolist() == np.flatnonzero(chosen_by(round, name)).tolist()
    asked = runs.open(path).sql(query).to_arrow_table()
    assert asked["record"].to_pylist() == records.tolist()
    assert asked.column_names == ["record", *round.table.column_names]
    assert asked["score_own"].to_pylist() == round.table["score_own"].take(records).to_pylist()
    given = {}
    exec(filtering.python(path, query), given)
    assert given["rows"]["record"].to_pylist() == records.tolist()
    program, *arguments = shlex.split(filtering.command(path, query))
    assert program == "rollsight"
    assert main(arguments) == 0
    assert [row["record"] for row in json.loads(capsys.readouterr().out)] == records.tolist()


def test_order_and_ties(round):
    query = filtering.sql(round.table, 2, Chosen({}, (("action", "desc"), ("score_own", "asc"))))
    expected = np.lexsort((np.arange(len(round)), round.column("score_own"), -round.column("action")))
    assert filtering.rows(round.table, query).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("filters", "says"),
    [
        ({"nothing": number("equals", 1)}, "no column 'nothing'"),
        ({"step; drop table records": number("equals", 1)}, "no column"),
        ({"step": number("equals", "1) or (1=1")}, "not a number"),
        ({"step": number("equals", float("inf"))}, "not a number"),
        ({"step": text("contains", "1")}, "not a filter"),
        ({"step": {"operator": ") or (", "conditions": [number("equals", 1)]}}, "not a filter"),
        ({"obs": number("equals", 1)}, "not a filter"),
    ],
)
def test_a_filter_that_is_not_valid_is_said(round, filters, says):
    with pytest.raises(RollsightError, match=says.replace("(", r"\(")):
        filtering.sql(round.table, 2, Chosen(filters))


def test_an_address_that_is_not_valid_is_said(context):
    for query in ({"filter": "{"}, {"filter": "[1]"}, {"sort": "obs:asc"}, {"target": "other"}):
        with pytest.raises(RollsightError):
            PAGES["round"].layout(context, Address("round", "steps", 2, query=query))
    with pytest.raises(RollsightError, match="round 9"):
        PAGES["round"].layout(context, Address("round", "steps", 9))


def test_no_query_reads_files(round):
    import duckdb

    with pytest.raises(duckdb.Error):
        filtering.rows(round.table, "select 1 as record from read_csv('/etc/passwd')")


def test_files_hold_the_rows_in_their_order(round):
    records = np.array([7, 3, 5])
    in_parquet = pq.read_table(BufferReader(exported(round.table, records, "parquet")))
    assert in_parquet["record"].to_pylist() == [7, 3, 5]
    stored = round.table.take(records)
    assert in_parquet.column_names == ["record", *stored.column_names]
    assert in_parquet.drop(["record", "score_return"]).equals(stored.drop(["score_return"]))
    assert np.array_equal(in_parquet["score_return"], stored["score_return"], equal_nan=True)
    rows = list(csv.DictReader(io.StringIO(exported(round.table, records, "csv").decode())))
    assert [row["record"] for row in rows] == ["7", "3", "5"]
    assert json.loads(rows[0]["obs"]) == round.table["obs"][7].as_py()
    in_json = json.loads(exported(round.table, records, "json"))
    assert [row["note"] for row in in_json] == [NOTES[7 % 5], NOTES[3], NOTES[0]]
    assert in_json[2]["score_return"] is None  # it is not a number


def test_facts_count_what_is_there(context, round):
    assert {status: int((round.status == status).sum()) for status in ("kept", "dropped", "invalid")} == {
        "kept": int(round.table["kept"].to_numpy(zero_copy_only=False).sum()),
        "dropped": int((round.scores < -0.8).sum()),
        "invalid": 1,
    }
    said = str(facts.facts(round, context.summary("steps", 2)))
    assert "mask" in said
    assert "replay" in said
    assert "fewer than <b>asked</b>" in str(facts.said(context.summary("steps", 2)))


def test_the_cut_divides_what_was_dropped(round):
    cut = cut_of(round, {"target": "return"})
    assert cut == round.scores[round.scores < -0.8].max()
    assert cut_of(round, {"target": "own"}) is None


def test_of_another_target_there_is_no_cut(context):
    other = round_of(context.reading, "steps", 2, "own")
    assert other.scores[0] == a_round(2)["score_own"][0]
    assert cut_of(other, {"target": "return"}) is None
    assert cut_of(other, {}) is None  # what was dropped is not what this score says


@pytest.mark.parametrize("by", ["action", "phase", "env", "episode"])
def test_masses_add_up(round, by):
    split = masses(round, by)
    assert split.hurt.sum() + split.helped.sum() == pytest.approx(1)
    assert split.records.sum() == np.isfinite(round.scores).sum()
    harmful = -round.scores[round.scores < 0].sum() / np.nansum(np.abs(round.scores))
    assert split.hurt.sum() == pytest.approx(harmful)
    place = int(np.argmax(split.hurt))
    wanted = pictures.of_mass(round, by, {"points": [{"customdata": [place, 0.1, 3]}]})
    some = filtering.rows(round.table, filtering.sql(round.table, 2, Chosen(wanted)))
    scores = round.scores[some]
    assert -scores[scores < 0].sum() / np.nansum(np.abs(round.scores)) == pytest.approx(split.hurt[place])


def test_a_bar_and_a_span_of_the_histogram_give_their_records(round):
    figure = figures.histogram(round.scores, round.status)
    heights = {}
    for bar in figure.data:
        for data, count in zip(bar.customdata, bar.y, strict=True):
            heights[tuple(data)] = heights.get(tuple(data), 0) + int(count)
    assert sum(heights.values()) == np.isfinite(round.scores).sum()
    for data, count in heights.items():
        wanted = pictures.of_bar(round, {"points": [{"customdata": list(data)}]})
        assert len(filtering.rows(round.table, filtering.sql(round.table, 2, Chosen(wanted)))) == count
    wanted = pictures.of_span(round, {"range": {"x": [-100, 100]}})
    assert len(filtering.rows(round.table, filtering.sql(round.table, 2, Chosen(wanted)))) == sum(heights.values())
    assert pictures.of_span(round, None) is None
    assert pictures.of_bar(round, None) is None


def test_episodes_end_where_they_do(round):
    ends, timed_out = episode_ends(round, LIMIT)
    env, step = round.column("env"), round.column("step")
    assert sorted(step[ends & (env == 0)]) == [6, 13, 20, 27, 34]  # the last one goes on after the round
    assert sorted(step[ends & (env == 1)]) == [9, 19, 29, 39]
    assert timed_out.tolist() == (ends & (env == 1)).tolist()


def test_the_strip_places_every_record(round):
    at = places(round.column("env"), round.column("step"))
    figure = strip(round.scores, round.status, at, *episode_ends(round, LIMIT))
    cells = np.array(figure.data[0].customdata)
    assert sorted(cells.ravel().tolist()) == list(range(len(round)))
    assert cells[1, 30] == 61
    assert figure.data[0].z[1][30] == round.scores[61]
    assert figure.data[1].z[1][2] == 1  # record 5 is invalid
    assert {trace.name for trace in figure.data} >= {"episode ends", "cut off at the time limit", "dropped"}


def test_a_long_rollout_of_one_environment_is_broken_into_lines():
    at = places(np.zeros(1000), np.arange(1000))
    assert len(at.labels) == 4
    assert at.across.max() == 249
    assert at.line.tolist() == (np.arange(1000) // 250).tolist()


def test_many_points_are_thinned_and_the_largest_stay():
    scores = np.random.default_rng(0).normal(size=20_000)
    shown = figures.thinned(scores, 500)
    assert len(shown) <= 500
    assert set(np.argsort(-np.abs(scores))[:100]) <= set(shown.tolist())


def test_the_page_keeps_what_is_chosen(context, round):
    query = {"filter": json.dumps(CASES["hurt"]), "sort": "score_own:desc", "columns": "record,note", "by": "env"}
    address = Address("round", "steps", 2, query=query)
    page = str(PAGES["round"].layout(context, address))
    assert "score_own" in page
    assert "lessThan" in page
    led = PAGES["round"].keys(context, address)
    assert (led["previous"].round, led["next"].round, led["up"].page) == (1, 3, "overview")
    assert led["next"].query == query
    shown = [one["colId"] for one in columns.definitions(round, ["record", "note"]) if not one["hide"]]
    assert shown == ["record", "note"]


def test_a_cell_says_what_is_stored(round):
    first, invalid = columns.cells(round, np.array([0, 5]))
    assert first["record"] == 0
    assert first["score_own"] == round.table["score_own"][0].as_py()
    assert invalid["status"] == "invalid"
    assert invalid["score_return"] is None
    json.dumps([first, invalid], allow_nan=False)


def test_buttons_above_the_table(round):
    assert table.only_these({"a": 1}, "all", "return") == {}
    hurt = table.only_these({}, "hurt", "return")
    assert len(filtering.rows(round.table, filtering.sql(round.table, 2, Chosen(hurt)))) == (round.scores < 0).sum()


def test_a_round_without_scores_says_what_to_do(tmp_path):
    with runs.create(tmp_path / "plain", {"host": "stable-baselines3 2.7"}) as writer:
        given = {name: values for name, values in a_round(1).items() if not name.startswith("score_")}
        writer.write_records(1, given)
        writer.write_round(1, {"records": ENVS * STEPS, "scored": False})
    page = str(PAGES["round"].layout(Context(Reading([tmp_path])), Address("round", "plain", 1)))
    assert "This round was not scored" in page
    assert "round-table" in page


def test_completions_stand_by_prompt(tmp_path):
    texts = ["<script>alert(1)</script>", "ab\u202ecd", "x" * 1_000_000, "plain"]
    with runs.create(tmp_path / "texts", {"host": "trl 1.0"}) as writer:
        given = {"group": [0, 0, 1, 1], "prompt": ["p", "p", "q", "q"], "completion": texts}
        scores = {"score_sequence": [1.0, -3.0, 0.5, -0.5], "kept": [True] * 4, "valid": [True] * 4}
        writer.write_records(1, {"round": [1] * 4, **given, "advantage": [0.0] * 4, **scores})
        writer.write_round(1, {"records": 4})
    context = Context(Reading([tmp_path]))
    round = round_of(context.reading, "texts", 1)
    assert masses(round, "group").hurt.tolist() == [0.6, 0.1]
    assert pictures.rollout(round, {}).data[0].z.shape == (2, 2)
    cells = columns.cells(round, np.arange(4))
    assert "\u202e" not in cells[1]["completion"]
    assert len(cells[2]["completion"]) < 400
    assert "round-table" in str(PAGES["round"].layout(context, Address("round", "texts", 1)))


def test_columns_that_are_called_like_ours_keep_their_values(tmp_path):
    with runs.create(tmp_path / "own", {"host": "own"}) as writer:
        stored = {"record": [9, 8, 7], "status": ["a", "b", "a"], "search": [[1], [2], [3]]}
        writer.write_records(1, {"round": [1] * 3, **stored, "score_return": [1.0, -1.0, 2.0]})
        writer.write_round(1, {"records": 3})
    round = round_of(Reading([tmp_path]), "own", 1)
    query = filtering.sql(
        round.table, 1, Chosen({"stored_status": equal("text", "a"), "status": equal("text", "kept")})
    )
    assert filtering.rows(round.table, query).tolist() == [0, 2]
    asked = runs.open(tmp_path / "own").sql(query).to_arrow_table()
    assert asked["record"].to_pylist() == [0, 2]
    assert asked["stored_record"].to_pylist() == [9, 7]
    assert asked["stored_search"].to_pylist() == [[1], [3]]


@pytest.mark.parametrize("largest", [0.0007, 0.013, 0.09, 0.37, 0.41, 0.48, 1.0])
def test_shares_have_a_tick_on_either_side_of_0(largest):
    figure = figures.split_mass(["one"], np.array([largest / 2]), np.array([largest]), np.array([3]))
    ticks = list(figure.layout.xaxis.tickvals)
    assert len(ticks) in (3, 5)
    assert max(ticks) <= figure.layout.xaxis.range[1]
