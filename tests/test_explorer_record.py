"""A record's page: what was done, its rank, its episode, records like it, and what is rebuilt only on request."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.explorer import Reading, create_app, drawing, record_jobs
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.figures.episode import score_curve
from rollsight.explorer.jobs import Progress
from rollsight.explorer.pages import PAGES
from rollsight.explorer.pages.record import advantage, after, facts, film
from rollsight.explorer.rounds import round_of
from rollsight.explorer.similar import episode_of, nearest, observations
from rollsight.explorer.theme import number
from rollsight.runs import results_folder

RECORDS = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A real run of CartPole: two rounds with snapshots."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "poles")
    return folder


def train(path):
    from rollsight.cli import main

    given = [
        "--rounds",
        "2",
        "--n-steps",
        str(RECORDS),
        "--eval-episodes",
        "1",
        "--epochs",
        "2",
        "--batch-size",
        "16",
        "--engine",
        "sb3",
    ]
    assert main(["train", "CartPole-v1", *given, "--snapshots", "all", "--drop", "0.5", "--out", str(path)]) == 0


@pytest.fixture(scope="module")
def context(folder):
    return Context(Reading([folder]))


@pytest.fixture
def round(context):
    return round_of(context.reading, "poles", 2)


def page(context, record, **query):
    return str(PAGES["record"].layout(context, Address("record", "poles", 2, record, query)))


def test_the_page_says_what_was_done(context, round):
    shown = page(context, 7)
    action = round.table["action"][7].as_py()
    assert f"{action} · push {('left', 'right')[action]}" in shown
    assert "pole angle" in shown
    assert "rad" in shown
    chance = float(np.exp(round.column("log_prob")[7]))
    assert facts.chance(round, 7)[0] == "Probability"
    assert facts.chance(round, 7)[1].startswith(f"{100 * chance:.3g}")


def test_ranks_are_places_in_the_round(round):
    order = np.argsort(-round.scores)
    assert f"1 from the top, of {RECORDS}" in str(facts.targets(round, int(order[0])))
    assert f"2 from the bottom, of {RECORDS}" in str(facts.targets(round, int(order[-2])))


def test_what_is_not_there_is_said(context):
    with pytest.raises(RollsightError, match=f"has {RECORDS} records and none of number {RECORDS}"):
        page(context, RECORDS)
    with pytest.raises(RollsightError, match="no scores of the target 'other'"):
        page(context, 0, target="other")


def test_keys_lead_to_the_neighbours_in_the_buffer_and_up_to_the_round(context):
    def keys(record):
        led = PAGES["record"].keys(context, Address("record", "poles", 2, record, {"target": "return"}))
        return {key: (to.page, to.record, to.query) for key, to in led.items()}

    chosen = {"target": "return"}
    assert keys(0) == {"up": ("round", None, chosen), "next": ("record", 1, chosen)}
    assert keys(RECORDS - 1) == {"up": ("round", None, chosen), "previous": ("record", RECORDS - 2, chosen)}


def test_an_episode_is_its_steps_in_order(round):
    numbers = round.column("episode")
    for record in (0, 20, RECORDS - 1):
        episode = episode_of(round, record)
        assert episode.records.tolist() == np.flatnonzero(numbers == numbers[record]).tolist()
        assert episode.records[episode.place] == record
        assert (np.diff(episode.steps) == 1).all()
    first, last = episode_of(round, 0), episode_of(round, RECORDS - 1)
    assert first.begun_before == (round.column("episode_step")[0] > 0)
    assert last.goes_on == np.isnan(round.column("episode_return")[RECORDS - 1])


def test_the_curve_marks_the_present_step_and_names_its_records(round):
    episode = episode_of(round, 20)
    some = episode.records
    figure = score_curve(episode.steps, round.scores[some], some, round.status[some], episode.place)
    assert figure.layout.shapes[0].x0 == episode.steps[episode.place]
    bars = [record for bar in figure.data if bar.type == "bar" for record in bar.customdata]
    assert sorted(bars) == some.tolist()


def test_the_nearest_records_are_the_nearest(round):
    same, other = nearest(round, 20, count=5)
    seen = np.array(round.table["obs"].to_pylist())
    distances = np.sqrt((((seen - seen[20]) / seen.std(0)) ** 2).mean(1))
    actions = round.column("action")
    for near, which in ((same, actions == actions[20]), (other, actions != actions[20])):
        there = [record for record in np.argsort(distances, kind="stable") if which[record] and record != 20]
        assert near.records.tolist() == there[:5]
        assert near.distances == pytest.approx(distances[near.records])
        assert near.opposed.tolist() == (round.scores[near.records] * round.scores[20] < 0).tolist()


def written(folder, name, **columns):
    count = len(next(iter(columns.values())))
    with runs.create(folder / name, {"host": "own", "env": "Some-v0"}) as writer:
        writer.write_records(1, {"round": [1] * count, **columns})
        writer.write_round(1, {"records": count})
    return round_of(Reading([folder]), name, 1)


def test_numbers_of_places_are_alike_only_where_they_are_equal(tmp_path):
    scores = {"score_return": [1.0, -1.0, 1.0, -1.0]}
    lake = written(tmp_path, "lake", obs=[3, 3, 4, 3], action=[0, 0, 0, 1], **scores)
    same, other = nearest(lake, 0)
    assert (same.records.tolist(), same.opposed.tolist()) == ([1], [True])
    assert other.records.tolist() == [3]


def test_observations_that_are_stored_in_part_are_compared_where_they_are(tmp_path):
    some = written(tmp_path, "large", obs=[[1.0, 2.0], None, [3.0, 4.0]], action=[0.1, 0.2, 0.3])
    assert np.array_equal(observations(some), [[1, 2], [np.nan, np.nan], [3, 4]], equal_nan=True)
    near, other = nearest(some, 0)
    assert near.records.tolist() == [2]
    assert other is None  # actions are no choices
    assert nearest(some, 1) is None


def test_pictures_come_from_observations_and_are_spread_over_a_long_episode(context, round):
    run = context.reading.run("poles")
    episode = episode_of(round, 20)
    pictures = drawing.drawn(run, 2, 20, episode.records.tolist(), replay=False)
    assert not pictures.replayed
    assert pictures.picture.startswith(b"\x89PNG")
    assert list(pictures.frames) == episode.records.tolist()
    address = Address("record", "poles", 2, 20)
    shown = str(film.strip(context, address, round, episode, pictures))
    assert shown.count("rs-frame rs-now") == 1
    assert all(context.href(Address("record", "poles", 2, record)) in shown for record in pictures.frames)
    shown = drawing.spread(range(1000, 2000), 1501)
    assert len(shown) <= drawing.FRAMES
    assert {1000, 1501, 1999} <= set(shown)
    assert shown == sorted(shown)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_process_that_draws_can_still_be_ended(folder):
    code = (
        "import os, signal, sys; from rollsight import runs; from rollsight.explorer.drawing import drawn;"
        "drawn(runs.open(sys.argv[1]), 2, 20, [20], replay=False); os.kill(os.getpid(), signal.SIGTERM);"
        "signal.sigtimedwait([], 5)"
    )
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(folder / "poles")], check=False)
    assert ended.returncode == -signal.SIGTERM


def test_an_episode_is_not_played_again_unasked(tmp_path):
    some = written(tmp_path, "hidden", obs=[[1.0], [2.0]], action=[0, 1])
    assert len(some) == 2
    with pytest.raises(RollsightError, match="needs the episode to be played again"):
        drawing.drawn(runs.open(tmp_path / "hidden"), 1, 0, [0, 1], replay=False)


def test_the_action_after_the_update_is_what_the_next_round_begins_with(context, folder):
    path = folder / "poles"
    kept = results_folder(path, "after_update", "round-1")
    assert "Load the snapshot and replay" in str(
        after.layout(context, Address("record", "poles", 1, 3), at(context), 3)
    )
    said = []
    after.replay(str(path), 1, str(kept), lambda *counts: said.append(counts))
    assert said, "without a step it is told as loading to its end"
    log_prob = json.loads((kept / "result.json").read_text())["log_prob"]
    from rollsight.snapshot import Snapshot

    first, second = (Snapshot.load(path / "snapshots" / f"round-00000{number}.pt") for number in (1, 2))
    assert second.policy(first.records).log_prob.tolist() == pytest.approx(log_prob, abs=1e-6)
    shown = str(after.layout(context, Address("record", "poles", 1, 3), at(context), 3))
    assert facts.chance(at(context), 3, log_prob[3])[1] in shown


def test_the_monte_carlo_advantage_is_shown_where_it_was_computed_of_this_run(context, folder):
    path, address = folder / "poles", Address("record", "poles", 1, 3)
    assert "Load the snapshot and play on" in str(advantage.layout(context, address, at(context), 3))
    ended = []
    advantage.compute(str(path), 1, 3, lambda *counts: ended.append(counts))
    assert ended[-1] == (200, 200)
    one, result = advantage.kept(path, at(context), 3)
    assert one["a_hat"] == pytest.approx(at(context).column("advantage")[3])
    shown = str(advantage.layout(context, address, at(context), 3))
    assert f"{number(one['a_bar'])} ± {number(one['a_bar_error'], 2)}" in shown
    assert "100 episodes each" in shown
    assert "Load the snapshot and play on" in str(advantage.layout(context, address, at(context), 4))
    # The result of a command over the round has more branches; one of an earlier run of this name is left out.
    more = {**result, "branches": 1000, "records": [{**one, "a_bar": 7.25}]}
    runs.keep_result(results_folder(path, "diagnosis", "round-1"), more)
    assert advantage.kept(path, at(context), 3)[0]["a_bar"] == 7.25
    runs.keep_result(results_folder(path, "diagnosis", "round-1"), {**more, "records": [{**one, "a_hat": 9.0}]})
    assert advantage.kept(path, at(context), 3)[0]["a_bar"] == one["a_bar"]


def test_the_progress_of_a_computation_counts_what_is_over():
    running = Progress("running", 200, 200)
    assert "'200 of 200 episodes are over'" in str(
        record_jobs.offer("x", running, "", "{done} of {total} episodes are over")
    )


def at(context):
    return round_of(context.reading, "poles", 1)


def test_without_a_snapshot_it_says_so(tmp_path):
    written(tmp_path, "bare", obs=[[1.0], [2.0]], action=[0, 1], log_prob=[-0.1, -0.2], score_return=[1.0, -1.0])
    shown = str(PAGES["record"].layout(Context(Reading([tmp_path])), Address("record", "bare", 1, 1)))
    assert "This needs the snapshot of round 1" in shown
    assert "This run has none" in shown


def test_texts_of_a_completion_are_texts(tmp_path):
    text = "<script>alert(1)</script>\u202e" + "x" * 50_000
    columns = {"group": [0, 0], "prompt": ["p", "p"], "completion": [text, "other"], "reward": [0.0, 1.0]}
    written(tmp_path, "texts", **columns, score_sequence=[1.0, -2.0])
    shown = str(PAGES["record"].layout(Context(Reading([tmp_path])), Address("record", "texts", 1, 0)))
    assert "<script>alert(1)</script>" in shown  # React escapes it
    assert "\u202e" not in shown
    assert "the first 20,000 here" in shown
    assert "/runs/texts/record/1/1" in shown  # the prompt's other completion


def test_the_pages_callbacks_name_parts_of_their_own(folder):
    app = create_app(Reading([folder]))
    for callback in app.callback_map.values():
        pages = {given["id"].partition("-")[0] for given in callback["inputs"] if "-" in str(given["id"])}
        assert len(pages & {"round", "record"}) <= 1
