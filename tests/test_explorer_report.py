"""The report: one file that opens by itself, the verdict first, and text that is only text."""

import re

import numpy as np
import pyarrow as pa
import pytest
from test_explorer_app import write_run

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.explorer.report import write_report
from rollsight.explorer.verdict import harm_sentence, harmful_groups, learned

HOSTILE = "<script>window.harmed = true</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        write_run(folder / f"run-{seed}", rounds=6, seed=seed)
    with runs.create(folder / "texts", {"host": "trl 1.16.0", "env": HOSTILE, "algo": "grpo"}) as writer:
        records = {
            "prompt": [HOSTILE, "b"],
            "completion": ["</pre><img src=x onerror=alert(1)>", "\u202ereversed"],
            "reward": [1.0, 0.0],
            "score_sequence": [-1.0, 1.0],
            "valid": [True, True],
            "kept": [False, True],
        }
        writer.write_records(1, records)
        writer.write_round(1, {"records": 2, "valid": 2, "reward_mean": 0.5, "scored": True, "dropped": 1})
    return folder


def test_the_report_says_the_verdict_first_and_needs_no_network(folder, tmp_path):
    path = write_report(folder / "run-0", tmp_path / "r.html", compare=[folder / "run-1"])
    text = path.read_text("utf-8")
    verdict = text[text.index('class="verdict"') : text.index("<h2>")]
    for question in (
        "Did it learn?",
        "Can its scores be believed?",
        "What hurt most?",
        "What was left out?",
        "What to try",
    ):
        assert question in verdict
    assert "It learned: mean return 10 in the first round, 60 in the last" in verdict
    assert "run-1" in text
    outside = re.sub(r'<script type="application/(octet-stream|json)".*?</script>', "", text, flags=re.DOTALL)
    assert not re.search(r'(src|href)="?(https?:)?//', outside)
    assert path.stat().st_size < 5 * 2**20


def test_texts_of_records_are_text(folder, tmp_path):
    text = write_report(folder / "texts", tmp_path / "t.html").read_text("utf-8")
    assert HOSTILE not in text
    assert "<img src=x" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;window.harmed" in text


def test_records_of_a_replay_buffer_have_their_td_errors(tmp_path):
    with runs.create(tmp_path / "replay", {"host": "stable-baselines3 2.9", "env": "Line-v0", "algo": "dqn"}) as writer:
        records = {"env": [0, 0], "step": [0, 1], "action": [0, 1], "reward": [1.0, 0.0], "td_error": [0.625, -2.5]}
        writer.write_records(1, {**records, "score_value": [-1.0, 1.0], "valid": [True, True], "kept": [True, True]})
        writer.write_round(1, {"records": 2, "valid": 2, "return_mean": 0.5, "scored": True, "dropped": 0})
    text = write_report(tmp_path / "replay", tmp_path / "r.html").read_text("utf-8")
    assert "TD error 0.625" in text
    assert "<th>advantage</th>" not in text
    assert "Score against TD error" in text


def test_the_same_run_gives_the_same_file(folder, tmp_path):
    one, two = (write_report(folder / "run-0", tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert one == two


def test_what_cannot_be_reported_is_said(folder, tmp_path, call):
    write_run(tmp_path / "begun", rounds=0)
    with pytest.raises(RollsightError, match="no complete round yet"):
        write_report(tmp_path / "begun", tmp_path / "r.html")
    with pytest.raises(RollsightError, match="has no round 9"):
        write_report(folder / "run-0", tmp_path / "r.html", round=9)
    assert call("report", folder / "run-0", "--out", tmp_path / "r.txt")[0] == 1
    assert call("report", folder / "run-0", "--out", tmp_path / "r.html")[0] == 0
    code, _, said = call("report", folder / "run-0", "--out", tmp_path / "r.html")
    assert code == 1
    assert "--overwrite" in said


@pytest.mark.parametrize(
    ("returns", "sentence"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "It learned:"),
        ([1, 5, 9, 13, 17, 21, 17, 13, 9, 10], "It learned and fell back:"),
        ([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], "It got worse:"),
        ([5, 7, 4, 6, 5, 7, 4, 6, 5, 6], "No clear change:"),
        ([5], "Too few rounds"),
    ],
)
def test_whether_it_learned_is_told_from_its_curve(returns, sentence):
    rounds = pa.table({"round": list(range(1, len(returns) + 1)), "return_mean": [float(one) for one in returns]})
    assert learned(rounds).startswith(sentence)


def test_harm_is_placed_where_it_exceeds_the_share_of_records():
    env = np.repeat(np.arange(4), 25)
    scores = np.where(env == 2, -3.0, np.where(np.arange(100) % 2, 1.0, -0.1))
    table = pa.table({"env": env, "score_return": scores, "valid": np.ones(100, bool)})
    first = harmful_groups(table, "score_return")[0]
    assert (first.column, first.value, first.records) == ("env", 2.0, 0.25)
    assert first.harm == pytest.approx(75 / (75 + 0.1 * 38), rel=0.02)
    assert harm_sentence([first]).startswith("Environment 2 carries 95")
    even = pa.table({"env": env, "score_return": np.where(np.arange(100) % 2, 1.0, -1.0)})
    assert "spread" in harm_sentence(harmful_groups(even, "score_return"))


def test_culprits_that_were_not_computed_are_offered_by_their_command(folder, tmp_path):
    for name, query in (("run-0", "where action = 1"), ("texts", "where contains(completion")):
        text = write_report(folder / name, tmp_path / f"{name}.html").read_text("utf-8")
        section = text[text.index("Which rollouts taught it?") :]
        assert "Not computed yet" in section
        assert "rollsight culprits" in section
        assert query in section
