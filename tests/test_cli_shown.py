"""`top` on real runs of every kind at three widths; misspelt commands and options; files that are not replaced."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
from rich.cells import cell_len
from sb3_zoo import Toy

from rollsight import runs
from rollsight.adapters.sb3 import InfluenceCallback
from rollsight.analysis.learning_curves import evaluation_curve, training_curve
from rollsight.cli import COMMANDS, output
from rollsight.cli.tables import Column, Grid, cell, cut
from rollsight.conversations import in_full, on_one_line

WIDTHS = (60, 100, 160)


class Masked(Toy):
    def action_masks(self):
        return np.array([True, True, False])


KINDS = {
    "vector": (stable_baselines3.PPO, "MlpPolicy", lambda: Toy("box")),
    "image": (stable_baselines3.PPO, "CnnPolicy", lambda: Toy("image")),
    "dict": (stable_baselines3.PPO, "MultiInputPolicy", lambda: Toy("dict")),
    "dict with an image": (stable_baselines3.PPO, "MultiInputPolicy", lambda: Toy("dict_image", "box")),
    "masks": (sb3_contrib.MaskablePPO, "MlpPolicy", lambda: Masked("box")),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, (algorithm, policy, make) in KINDS.items():
        model = algorithm(policy, make(), n_steps=32, batch_size=32, n_epochs=1, seed=0)
        model.learn(32, callback=InfluenceCallback(run=folder / name))
    return folder


@pytest.fixture
def top(call, monkeypatch):
    """What `top` prints at a width, which it must keep, and the records in JSON."""

    def top(run, width, *options):
        monkeypatch.setenv("COLUMNS", str(width))
        code, out, err = call("top", run, *options)
        assert (code, err) == (0, "")
        assert max(map(cell_len, out.splitlines())) <= width
        return out, json.loads(call("top", run, *options, "--json")[1])["records"]

    return top


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_records_of_steps(trained, top, kind, width):
    out, records = top(trained / kind, width, "--n", 4)
    heading, _, *lines = out[out.index("# ") :].splitlines()
    for row, line in zip(records, lines, strict=False):
        assert line.split()[:3] == [str(row["rank"]), "0", str(row["step"])]  # one line, and never without who it is
        assert cell(row["score"]) in line.split()  # all digits
        assert not re.search(r"\d…", line)
        if "reward" in heading:
            assert cell(row["reward"]) in line.split()
    seen = {"vector": ["obs"], "masks": ["obs"], "dict": ["obs.kind", "obs.obs"], "dict with an image": ["obs.speed"]}
    named = [word for word in heading.split() if word.startswith("obs")]
    assert named == seen.get(kind, []) or (
        width == 60 and named == ["obs.kind"] and "left out: episode, its step, obs.obs" in out
    )
    assert ("obs.picture: 1296 numbers a record, not shown" in " ".join(out.split())) == (kind == "dict with an image")
    assert ("obs: 1296 numbers a record" in out) == (kind == "image")
    assert ("left out: " in out) == (width == 60)
    if width > 60:
        assert all(word in heading for word in ("episode", "its step", "action", "reward", "advantage", "kept"))


def test_records_in_full(trained, top):
    out, (row,) = top(trained / "dict with an image", 60, "--n", 1, "--full")
    assert f"#1, score {cell(row['score'])}" in out
    assert re.search(r"obs\.picture +1296 numbers from \d+ to \d+", out)
    assert re.search(r"obs\.speed +\[-?[\d.]+, -?[\d.]+\]", out)
    assert all(re.search(rf"^  {name} +\S", out, re.M) for name in ("value", "log_prob", "episode_step", "action"))


SYSTEM = "You answer questions about the weather in as few words as you can. " * 5
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome", "unit": "C"}}}
TALK = [
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "get_weather", "content": '{"temperature": 22, "wind": "a light breeze"}'},
    {"role": "assistant", "content": "It is\n22 degrees."},
]


def write_texts(path, prompts, completions, **metadata):
    """A run as TRL's trainers leave one: `targets` in its metadata, no score of `return`."""
    n = len(prompts)
    with runs.create(path, {"algo": "grpo", "targets": ["sequence"], **metadata}) as writer:
        writer.write_records(
            1,
            {
                "round": np.full(n, 1),
                "group": np.arange(n) // 2,
                "prompt": prompts,
                "completion": completions,
                "token_ids": [list(range(100))] * n,
                "reward": np.arange(n) / 7,
                "reward_length": np.arange(n) / 7,
                "advantage": np.linspace(-1, 1, n),
                "score_sequence": np.linspace(-123.4, 157.2, n),
                "score_return": [None] * n,
                "kept": np.ones(n, bool),
                "valid": np.ones(n, bool),
            },
        )
        writer.write_round(1, {"return_mean": 0.0})
    return path


@pytest.fixture
def texts(tmp_path):
    prompts = [f"Question {i}. {'Some words that lead to it. ' * 9}\nWhat is {i} + {i}?" for i in range(4)]
    return write_texts(tmp_path / "texts", prompts, ["Let me think.\n\n" * i + f" It is {2 * i}." for i in range(4)])


@pytest.fixture
def talks(tmp_path):
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "How warm is it in Rome?"}]
    return write_texts(tmp_path / "talks", [json.dumps(asked)] * 4, [json.dumps(TALK)] * 4)


@pytest.mark.parametrize("width", WIDTHS)
def test_texts_take_a_line_each_and_the_target_is_the_runs_own(texts, top, width):
    out, records = top(texts, width)
    assert "target sequence" in out
    lines = out[out.index("# ") :].splitlines()[2:6]
    for row, line in zip(records, lines, strict=True):
        assert line.split()[0] == str(row["rank"])
        assert {cell(row["score"]), cell(row["reward"])} <= set(line.split())
        assert re.search(r"Question? ?.*…[^…]* \+ \d\?", line)  # how the prompt begins, and what it asks
        assert f"{2 * (4 - row['rank'])}." in line  # the end of the completion
    assert ("left out: " in out) == (width == 60)


@pytest.mark.parametrize("width", WIDTHS)
def test_conversations_show_their_roles(talks, top, width):
    out, records = top(talks, width)
    lines = out[out.index("# ") :].splitlines()[2:6]
    assert len(records) == 4
    assert all("sys" in line and "Rome?" in line and "assistant: [ge" in line and "role" not in line for line in lines)
    assert width < 160 or all("[get_weather(…)] | tool: " in line for line in lines)


def test_texts_in_full(texts, talks, top):
    out, (row,) = top(texts, 60, "--n", 1, "--full")
    assert " ".join(row["prompt"].split()) in " ".join(out.split())
    assert out.count("    Let me think.\n".rstrip()) == 3  # on lines of their own
    assert "100 numbers from 0 to 99" in out
    assert "reward_length" in out
    out, _ = top(talks, 60, "--n", 1, "--full")
    assert "    user: How warm is it in Rome?" in out
    assert '    assistant: get_weather(city="Rome", unit="C")' in out
    assert '    tool (get_weather): {"temperature": 22, "wind": "a light' in out
    assert re.search(r"    assistant: It is *\n    22 degrees\.", out)
    assert SYSTEM.strip() in " ".join(out.split())


def test_conversations_of_other_shapes():
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    assert on_one_line(json.dumps(parts)) == "user: [image] What is it?"
    odd = [
        {"role": "assistant", "content": None, "reasoning": "Hm.", "tool_calls": [{"name": "f", "arguments": "1"}, 3]}
    ]
    assert on_one_line(json.dumps(odd)) == "assistant: [f(…)] [3(…)]"
    assert list(in_full(json.dumps(odd))) == [("assistant", "f(1)\n3()\nreasoning: Hm.")]
    for text in ("[1, 2]", '[{"role": 3}]', '[{"role"', "[" * 100_000 + '"role"', "", "plain\n text"):
        assert on_one_line(text) == " ".join(text.split())
        assert list(in_full(text)) == [("", text)]


def test_the_default_target_of_each_round(tmp_path, call):
    path = tmp_path / "run"
    columns = {"env": np.zeros(3, int), "step": np.arange(3), "valid": np.ones(3, bool)}
    with runs.create(path, {}) as writer:
        writer.write_records(1, columns | {"score_objective": np.arange(3.0), "score_return": np.arange(3.0)})
        writer.write_round(1, {})
        writer.write_records(2, columns | {"score_objective": [None] * 3})
        writer.write_round(2, {})
    assert "round 1, target objective" in call("top", path)[1]
    assert "round 1, target return" in call("top", path, "--target", "return")[1]
    assert (
        "stores no scores of 'sequence': choose from objective, return" in call("top", path, "--target", "sequence")[2]
    )


# Tables


def test_numbers_are_never_cut():
    grid = [Column(f"number {i}", [123456789.25, -1.5e-7]) for i in range(5)]
    for width in range(8, 120, 3):
        console = output.PlainConsole(file=io.StringIO(), width=width, record=True)
        console.print(Grid([*grid, Column("interval", ["11.0 ± 2.5", "-"]), Column("text", ["words " * 9, "x"])]))
        shown = console.export_text()
        assert shown.count("123456789") == shown.count("-1.5e-07") == 5 or width < 20
        assert "11.0 ± 2.5" in shown or width < 20


def test_long_values_are_cut_where_they_say_least():
    assert cut("The beginning and the end.", 15) == "The beginn…end."
    assert cell_len(cut("今天天气怎么样今天天气怎么样", 11)) <= 11
    assert cell([0.123456, -12.5, 3.0, 4.0], 16) == "[0.12, -12, …]"
    assert cell([1, 2, 3]) == "[1, 2, 3]"
    assert cell(None) == "-"
    assert cell(True) == "yes"


# Usage


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tarin"], "there is no command 'tarin': did you mean train?"),
        (["expotr", "x"], "there is no command 'expotr': did you mean export or report?"),
        (["xyzzy"], "there is no command 'xyzzy': rollsight --help lists them"),
        (["study", "direction"], "'study' has no 'direction': did you mean study directions?"),
        (["study", "GRPO"], "'study' has no 'GRPO': did you mean study grpo?"),
        (["top", "--rnd", "2", "RUN"], "top has no option --rnd: did you mean --round"),
        (["top", "RUN", "--botom"], "top has no option --botom: did you mean --bottom?"),
        (["compare", "RUN", "--figur=x.png"], "compare has no option --figur: did you mean --figure?"),
        (["study", "CartPole-v1", "--sed", "3"], "study has no option --sed: did you mean --seeds?"),
        (["sql", "RUN", "x", "--zzz"], "sql has no option --zzz: rollsight sql --help lists its options"),
    ],
)
def test_near_names(call, arguments, sentence):
    code, out, err = call(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {sentence}")


@pytest.mark.parametrize("env", ["direction-v0", "my:direction", "ns/paper", "CartPole-v1"])
def test_an_environment_is_no_misspelt_command(call, env):
    assert "did you mean study" not in call("study", env, "--seeds", "0")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_shows_none_as_a_type(call, command):
    code, out, _ = call(*command.split(), "--help")
    assert code == 0
    assert "{None" not in out
    assert "None|" not in out
    assert command != "top" or "{return,sequence,reward,objective,action}" in out


def test_version_and_help_import_no_more_than_they_need():
    code = "import sys; from rollsight.cli import main\ntry: main([{!r}])\nexcept SystemExit: pass\nprint(*sys.modules)"
    for option, said in (("--version", "rollsight 0."), ("--help", "usage: rollsight COMMAND")):
        command = [sys.executable, "-c", code.format(option)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert out.startswith(said)
        assert not {"torch", "numpy", "tyro", "rich", "pyarrow"} & set(out.splitlines()[-1].split())


# Comparing many runs


def write_curve(path, seed, rounds=3, arm="ppo"):
    rng = np.random.default_rng(seed)
    with runs.create(path, {"env": "E", "arm": arm, "seed": seed}) as writer:
        for round in range(rounds + 1):
            writer.write_evaluation(round, rng.normal(size=5), np.ones(5, int))
            if round:
                # The first rounds know no mean, whose column then has no type.
                writer.write_round(round, {"return_mean": None if round < 2 else float(rng.normal())})
    return path


def test_curves_are_those_of_sql_and_need_no_database(tmp_path):
    run = runs.open(write_curve(tmp_path / "run", 3))
    curve = evaluation_curve(run)
    rows = run.sql('select round, avg("return") from evaluations group by round order by round').fetchall()
    assert curve.rounds.tolist() == [row[0] for row in rows] == [0, 1, 2, 3]
    np.testing.assert_allclose(curve.returns, [row[1] for row in rows], rtol=1e-14)
    curve = training_curve(run)
    rows = run.sql("select round, return_mean from rounds where round > 1 order by round").fetchall()
    assert list(zip(curve.rounds.tolist(), curve.returns.tolist(), strict=True)) == rows
    code = "import sys; from rollsight.cli import main; main(['compare', sys.argv[1]]); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True).stdout
    assert "E: evaluation return" in shown
    assert not {"duckdb", "scipy.stats", "torch", "matplotlib.figure"} & set(shown.splitlines()[-1].split())


# Files


@pytest.fixture
def run(tmp_path):
    return write_curve(tmp_path / "runs" / "one", 0)


@pytest.mark.parametrize(
    "command",
    [
        ("compare", "RUN", "--figure", "FILE"),
        ("phases", "RUN", "--record", "1:0:0", "--figure", "FILE"),
        ("phases", "RUN", "--record", "1:0:0", "--out", "FOLDER"),
        ("intervene", "RUN", "--figure", "FILE"),
        ("fidelity", "RUN", "--round", "1", "--figure", "FILE"),
        ("fidelity", "RUN", "--round", "1", "--out", "FOLDER"),
        ("export", "RUN", "--table", "rounds", "--format", "csv", "--out", "FILE"),
        ("study", "paper", "--envs", "Acrobot-v1", "--out", "FOLDER"),
        ("study", "directions", "--out", "FOLDER"),
    ],
)
def test_no_command_replaces_a_file_unasked(tmp_path, run, call, command):
    file, folder = tmp_path / "mine.png", tmp_path / "folder"
    folder.mkdir()
    files = [file, *(folder / name for name in ("result.json", "phases.png", "fidelity.html", "results.md"))]
    for path in files:
        path.write_text("mine")
    places = {"RUN": run, "FILE": file, "FOLDER": folder}
    code, _, err = call(*(places.get(word, word) for word in command))
    assert code == 1
    assert re.search("exists already: choose another (file, or add --overwrite|--out)", err)
    assert all(path.read_text() == "mine" for path in files)
    if command[0] in ("compare", "export"):
        assert call(*(places.get(word, word) for word in command), "--overwrite")[0] == 0
        assert file.read_bytes()[:4] != b"mine"
    elif command[0] != "study":  # past the files, to what this run lacks
        assert "exists already" not in call(*(places.get(word, word) for word in command), "--overwrite")[2]


def test_the_files_of_a_run_are_never_written_to(tmp_path, run, call, monkeypatch):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = write_curve(tmp_path / "runs" / "two", 1)
    link, folder_link = tmp_path / "link.json", tmp_path / "linked"
    link.symlink_to(run / "run.json")
    folder_link.symlink_to(run)
    monkeypatch.chdir(run / "rounds")
    places = ["round-000001.parquet", "../run.json", run / "run.json", run / "new.csv", link, folder_link / "run.json"]
    for place in [*places, "../../two/run.json", other / "records" / "a.csv"]:
        code, _, err = call("export", run, "--table", "rounds", "--out", place, "--overwrite")
        assert code == 1
        assert "lies in the run folder" in err
    for command in (("compare", run, "--figure"), ("phases", run, "--record", "1:0:0", "--figure")):
        assert "lies in the run folder" in call(*command, run / "curves.png", "--overwrite")[2]
    for command in (("intervene", run), ("fidelity", run, "--round", 1), ("phases", run, "--record", "1:0:0")):
        assert "lies in the run folder" in call(*command, "--out", run / "results", "--overwrite")[2]
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert call("export", run, "--format", "csv", "--out", tmp_path)[2].startswith(f"error: {tmp_path} is a folder")


def test_a_study_keeps_off_a_folder_with_settings_of_another_program(tmp_path, call):
    (tmp_path / "settings.json").write_text('{"editor.fontSize": 12}')
    code, _, err = call("study", "directions", "--rounds", 1, "--seeds", 1, "--out", tmp_path)
    assert (code, "is not of a study: choose another --out" in err) == (1, True)
    assert (tmp_path / "settings.json").read_text() == '{"editor.fontSize": 12}'
