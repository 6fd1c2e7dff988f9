"""What keeps the explorer fast: what a server imports, the script of its figures, and nothing done twice."""

import gzip
import re
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import rollsight
from rollsight import runs
from rollsight.explorer import Reading, create_app, plotlyjs
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.figures.curves import Line, Strip, over_rounds
from rollsight.explorer.pages.runs import layout

SOURCES = Path(rollsight.__file__).parent


def _run(folder):
    with runs.create(folder, {"host": "own", "env": "CartPole-v1", "algo": "ppo", "seed": 0}) as writer:
        for round in (1, 2):
            writer.write_records(round, {"round": [round], "reward": [1.0], "valid": [True], "kept": [True]})
            writer.write_round(round, {"records": 1, "return_mean": float(round)})
    return folder


def test_a_server_starts_without_what_only_some_pages_need():
    code = "import sys, rollsight.explorer.server; print({'torch', 'scipy', 'duckdb', 'matplotlib'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


def test_the_script_of_the_figures_draws_all_that_they_are_made_of():
    script = gzip.decompress(plotlyjs.packed()).decode()
    drawn = set(re.findall(r'moduleType:"trace",name:"(\w+)"', script))
    files = [*(SOURCES / "explorer").rglob("*.py"), SOURCES / "analysis/intervention/pages.py"]
    text = "\n".join(path.read_text("utf-8") for path in files)
    made = {name.lower() for name in re.findall(r"\bgo\.([A-Z]\w+)\(", text)} - {"figure"}
    made |= set(re.findall(r"figure\.add_(\w+)\(", text)) - {"trace", "vline", "hline", "vrect", "annotation", "shape"}
    assert {"scatter", "bar", "heatmap", "box"} <= made <= drawn


def test_the_script_is_sent_once_and_asked_for_early(tmp_path):
    client = create_app(Reading([_run(tmp_path / "run")]), prefix="/here/").server.test_client()
    page = client.get("/").text
    assert f'<link rel="preload" as="script" href="/here/{plotlyjs.PATH}">' in page
    sent = client.get(f"/{plotlyjs.PATH}")
    assert gzip.decompress(sent.data).startswith(b"/**\n* plotly.js")
    again = client.get(f"/{plotlyjs.PATH}", headers={"If-None-Match": sent.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    chunks = re.findall(r'<link rel="preload" as="script" href="/here(/[^"]*)">', page)
    assert len(chunks) == 3
    assert [client.get(chunk).status_code for chunk in chunks] == [200] * 3


def test_what_two_ask_for_at_once_is_read_once(tmp_path, monkeypatch):
    reading, read = Reading([_run(tmp_path / "run")]), []
    rows = runs.Run.rows

    def slowly(*given, **more):
        read.append(1)
        threading.Event().wait(0.1)
        return rows(*given, **more)

    monkeypatch.setattr(runs.Run, "rows", slowly)
    asking = [threading.Thread(target=reading.summary, args=("run",)) for _ in range(4)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    assert len(read) == 1
    assert reading.summary("run")["last"] == 2.0


def test_the_list_of_runs_says_what_its_figure_shows(tmp_path):
    def parts(one):
        if isinstance(one, list):
            for child in one:
                yield from parts(child)
        elif hasattr(one, "to_plotly_json"):
            yield one
            yield from parts(getattr(one, "children", None))

    context = Context(Reading([_run(tmp_path / "a"), _run(tmp_path / "b")]))
    page = {getattr(part, "id", None): part for part in parts(layout(context, Address("runs").at(runs="b")))}
    assert page["runs-drawn"].data == {"names": ["b"], "by": "arm", "token": page["runs-token"].data}
    assert page["runs-table"].selectedRows == {"ids": ["b"]}


@pytest.mark.parametrize("count", [1, 3])
def test_strips_share_the_axis_of_the_lowest(count):
    line = Line("one", np.arange(3.0), np.arange(3.0))
    figure = over_rounds([Strip(f"strip {row}", [line]) for row in range(count)], mark=2)
    axes = list(figure.select_xaxes())
    assert [axis.matches for axis in axes] == [f"x{count}"] * (count - 1) + [None]
    assert [axis.title.text for axis in axes] == [None] * (count - 1) + ["round"]
    ends = [axis.domain for axis in figure.select_yaxes()]
    assert ends[0][1] == pytest.approx(1)
    assert ends[-1][0] == pytest.approx(0)
    assert all(above[0] > below[1] for above, below in pairwise(ends))
    assert [(shape.x0, shape.xref) for shape in figure.layout.shapes] == [(2, trace.xaxis) for trace in figure.data]
