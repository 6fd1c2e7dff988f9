"""What comes from elsewhere is shown as it stands: on the terminal, in figures, pages and Markdown."""

import ast
import io
import json
import os
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from rich.text import Text

import rollsight
from rollsight import runs
from rollsight.analysis.drawing import new_figure, save_figure
from rollsight.analysis.page import Panel, short, write_page
from rollsight.cli import output, progress
from rollsight.escaping import markdown_cell, plain_html, plain_label, visible, visible_json
from rollsight.studies import interval_plots, plots
from rollsight.studies.completions import by_score
from rollsight.studies.markdown import table

SOURCE = Path(rollsight.__file__).parent
# Markup, colours, a cleared screen, the clipboard (OSC 52), C1 controls, a carriage return, a reversed reading order.
HOSTILE = "e[/b][bold]\x1b[31m\x1b[2J\x1b]52;c;aGk=\x07\x9b1m\r\u202ex\x7f"
FOLDER = HOSTILE.replace("/", "")  # as a file may be called
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def assert_plain(text, *parts):
    assert STEERING.search(text) is None, repr(text)
    for part in parts:
        assert part in text


def write_run(path, *, env=HOSTILE, arm=HOSTILE, seed=0, texts=None, **columns):
    """One round of eight records, with whatever columns."""
    values = {"env": np.zeros(8, int), "step": np.arange(8), "reward": np.arange(8.0)}
    if texts is not None:
        values = {"prompt": [texts] * 8, "completion": [texts] * 8, "reward": np.arange(8.0)}
    values |= {"score_return": np.linspace(-1, 1, 8) + 0.1234, "kept": np.ones(8, bool), "valid": np.ones(8, bool)}
    with runs.create(path, {"env": env, "arm": arm, "seed": seed}) as writer:
        writer.write_evaluation(0, [0.0], [1])
        writer.write_records(1, values | columns)
        writer.write_evaluation(1, [1.0, 2.0], [1, 1])
        writer.write_round(1, {"return_mean": 1.0})
    return path


def test_texts_are_spelt_out():
    assert (
        visible("a\x1b[0m\n\t\udc80\u202e\U000e0041ü 😀\u200d") == r"a\x1b[0m\n\t\udc80\u202e\U000e0041ü 😀" + "\u200d"
    )
    assert visible("\x1b[0m\n\t\udc80\u202e\U000e0041") == r"\x1b[0m\n\t\udc80\u202e\U000e0041"
    assert visible("ü 今天 😀\u200d🔧 שלום a\u200cb") == "ü 今天 😀\u200d🔧 שלום a\u200cb"
    assert visible("a\n\tb\r", lines=True) == "a\n\tb\\r"
    strange = {"a\x9b": ["\u202e", "\udc80", "\U000e0041", "é\n"]}
    spelt = visible_json(json.dumps(strange, ensure_ascii=False))
    assert json.loads(spelt) == strange
    assert_plain(spelt)
    assert plain_label("$a$\x1b") == r"\$a\$\x1b"
    assert plain_html("<a href='x'>&\x1b") == r"&lt;a href='x'&gt;&amp;\x1b"
    assert markdown_cell("a|b\nc\x1b") == r"a\|b c\x1b"


def test_compare_of_hostile_names(tmp_path, call):
    write_run(tmp_path / f"{FOLDER}1", seed=0)
    write_run(tmp_path / f"{FOLDER}2", seed=0)
    code, out, err = call("compare", tmp_path, "--figure", tmp_path / "p[q]\x1b.png")
    assert (code, err) == (0, "")
    assert_plain(out, r"e[/b][bold]\x1b[31m", r"p[q]\x1b.png", "several runs of the same seed")
    assert (tmp_path / "p[q]\x1b.png").exists()
    code, out, err = call("compare", tmp_path, "--baseline", f"{HOSTILE}?")
    assert code == 1
    assert_plain(out + err, r"e[/b][bold]\x1b[31m")
    code, out, _ = call("compare", tmp_path, "--json")
    assert_plain(out)
    assert json.loads(out)[0]["env"] == HOSTILE


@pytest.mark.parametrize("width", ["60", "100"])
def test_top_and_sql_of_hostile_texts(tmp_path, call, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    spoken = json.dumps([{"role": HOSTILE, "content": HOSTILE, "tool_calls": [{"function": {"name": HOSTILE}}]}])
    steps = write_run(tmp_path / FOLDER, **{f"obs.{HOSTILE}": np.ones((8, 2)), "action": [HOSTILE] * 8})
    texts = write_run(tmp_path / "t", texts=HOSTILE * 20)
    talks = write_run(tmp_path / "c", texts=spoken)
    for run in (steps, texts, talks):
        for options in ([], ["--full"], ["--json"]):
            code, out, err = call("top", run, *options)
            assert (code, err) == (0, "")
            assert_plain(out)
            assert max(map(len, out.splitlines())) <= int(width) or "--json" in options
    assert_plain(call("top", steps)[1], r"e[b][bold]\x1b[31m")
    assert_plain(call("top", texts, "--full")[1], "e[/b][bold]")
    for query in ("select * from records", "select env, arm from run", f"""select 1 as "{HOSTILE}" """):
        for options in ([], ["--json"]):
            code, out, err = call("sql", steps, query, *options)
            assert (code, err) == (0, "")
            assert_plain(out, "[/b][bold]")


@pytest.mark.parametrize(
    "command",
    [
        ("top", "NAME"),
        ("top", "RUN", "--target", "NAME"),
        ("top", "RUN", "--NAME"),
        ("top", "RUN", "--round", "NAME"),
        ("sql", "RUN", 'select "NAME" from records'),
        ("sql", "RUN", "select * from records where score_return < 'NAME'"),
        ("export", "RUN", "--out", "NAME"),
        ("compare", "RUN", "--figure", "NAME.gif"),
        ("NAME",),
        ("study", "NAME"),
        ("train", "NAME"),
    ],
)
def test_errors_are_plain(tmp_path, call, command):
    run = write_run(tmp_path / "run")
    code, out, err = call(*(word.replace("NAME", HOSTILE).replace("RUN", str(run)) for word in command))
    assert code in (1, 2)
    assert_plain(out + err, "x1b")


def test_a_file_name_that_is_not_utf8_can_be_named(tmp_path, call):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    code, _, err = call("top", path)
    assert code == 1
    assert_plain(err, r"\udcff\udcfe is not a run (there is no such folder)")
    output.print_json({"run": str(path)})


def test_a_warning_is_one_plain_line(tmp_path, call, monkeypatch):
    def warn(path):
        warnings.warn(f"of {HOSTILE}\nb", stacklevel=1)
        return runs.Run(path)

    run = write_run(tmp_path / "run")
    monkeypatch.setattr(runs, "open", warn)
    _, _, err = call("top", run)
    assert err.startswith(r"warning: of e[/b][bold]")
    assert err.count("\n") == 1
    assert_plain(err)


def test_on_a_terminal_nothing_but_rich_itself_steers_it():
    stream = io.StringIO()
    console = output.PlainConsole(file=stream, force_terminal=True, width=100, color_system="truecolor")
    console.print(HOSTILE, style="bold")
    console.print(Text(HOSTILE, style="red"))
    console.print(output.table([HOSTILE, "n"], [[HOSTILE, 1.5], [[HOSTILE], None]], title=HOSTILE))
    console.print(output.text_table([HOSTILE, "n"], [[HOSTILE, 1.5]], title=HOSTILE))
    output.print_text(console, f"| {HOSTILE} |\n| a |")
    output.print_files(console, [Path(HOSTILE)])
    bare = progress.progress_bar(console)
    bare.add_task(HOSTILE, total=3)
    rounds = progress.round_bars(console)
    rounds.add_task(HOSTILE, total=3, detail=HOSTILE)
    for bars in (bare, rounds):
        console.print(bars.get_renderable())
    shown = stream.getvalue()
    assert "\x1b[1m" in shown  # rich's own styles are there
    assert_plain(re.sub("\x1b\\[[0-9;]*m", "", shown).replace("\t", ""), r"\x1b[2J\x1b]52;c;aGk=")
    assert "\x1b[31me" in shown  # and only those
    assert shown.count("[/b][bold]") >= 9


def test_no_command_prints_around_the_console():
    """`print`, consoles, markup and the raw streams are used in the modules that escape, and in no other."""
    allowed = {f"cli/{name}.py": {"print"} for name in ("__init__", "output", "warning_lines")}
    allowed["cli/output.py"] |= {"Console"}
    found = 0
    for folder in ("analysis", "cli", "runs", "studies", "training"):
        for path in (SOURCE / folder).rglob("*.py"):
            name = str(path.relative_to(SOURCE))
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                bad = {word for word in ("print", "Console") if called == word}
                bad |= {called} & {"sys.stdout.write", "sys.stderr.write", "Text.from_markup", "Text.from_ansi"}
                bad |= {"markup"} & {word.arg for word in node.keywords if ast.unparse(word.value) != "False"}
                bad |= {called} if called == "TextColumn" and "markup=False" not in ast.unparse(node) else set()
                found += bool(bad)
                assert bad <= allowed.get(name, set()), f"{name}:{node.lineno}: {ast.unparse(node)}"
    assert found > 3  # it sees those that are allowed


DOLLARS = r"$\frac{$ <b>x</b> $5"


def test_names_with_dollars_are_drawn(tmp_path, call):
    write_run(tmp_path / "a", env=DOLLARS, arm="$a^$")
    write_run(tmp_path / "b", env=DOLLARS, arm="_$b")
    code, _, err = call("compare", tmp_path, "--figure", tmp_path / "curves.svg")
    assert (code, err) == (0, "")
    line = plots.Line(DOLLARS, "#000000", np.arange(3.0), np.arange(3.0), np.ones(3))
    plots.draw([plots.Axes("round", "return", [line], DOLLARS)], tmp_path / "plots.svg", 1, (4, 4))
    column = interval_plots.Column("gain", [interval_plots.Dot(0.1, 0.0, 0.2)], (-1, 1))
    plot = interval_plots.IntervalPlot(DOLLARS, [DOLLARS], ["#000000"], [column])
    interval_plots.draw([plot], tmp_path / "dots.svg", "Caption.")
    figure = new_figure(3, 3)
    figure.suptitle(f"{plain_label(DOLLARS)}: " r"$\hat{A}$")  # next to a formula of ours
    save_figure(figure, tmp_path / "mixed.svg")


def test_names_are_no_markup_on_pages(tmp_path):
    script = "<script>alert(1)</script></script><a href='javascript:x'>"
    line = plots.Line(script, "#000000", np.arange(3.0), np.arange(3.0), np.ones(3))
    drawn = plots.panels([plots.Axes("round", "return", [line], script)])
    column = interval_plots.Column("gain", [interval_plots.Dot(0.1, 0.0, 0.2)], (-1, 1))
    plot = interval_plots.IntervalPlot(script, [script], ["#000000"], [column])
    drawn.append(interval_plots.panel(plot, "dots", script))
    raw = go.Figure(go.Scatter(x=[script], y=[1], hovertext=[short(script)]))
    path = write_page(tmp_path / "page.html", script, script, [*drawn, Panel("p", script, script, raw)])
    page = path.read_text("utf-8")
    assert "<script>alert" not in page
    assert "</script></script>" not in page
    figures = [one.figure for one in drawn]
    texts = [trace.name for figure in figures for trace in figure.data] + [str(y) for f in figures for y in f.data[0].y]
    assert any("&lt;script&gt;" in str(text) for text in texts)
    assert not any("<script>" in str(text) for text in texts)
    assert short(script) == plain_html(script)


def test_a_markdown_table_keeps_its_cells(tmp_path):
    text = table(["a", "b"], [["x|y\nz\x1b", "`q`"]])
    assert text.splitlines()[2:] == [r"| x\|y z | `q` |".replace("z ", r"z\x1b ")]
    run = write_run(tmp_path / "run", texts="a | b\n\n| c\x1b<i>")
    (highest, _) = by_score(run, "arm", None, 2)
    rows = [line for line in highest.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 2
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows)
    assert_plain(highest, "&lt;i>")


def test_written_texts_are_plain(tmp_path):
    output.write_texts(tmp_path, {"a.md": f"# {HOSTILE}\n", "none.md": ""})
    assert os.listdir(tmp_path) == ["a.md"]
    assert_plain((tmp_path / "a.md").read_text("utf-8"), "[/b]")


def test_a_printed_command_pastes(tmp_path):
    folder = Path("sp ace/it's $HOME")
    assert shlex.split(output.command("top", folder, "--bottom")) == ["rollsight", "top", str(folder), "--bottom"]
    assert output.command("top", Path("runs/a"), "--bottom") == "rollsight top runs/a --bottom"
    assert output.command("top", Path("-x")) == "rollsight top ./-x"
