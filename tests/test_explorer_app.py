"""The explorer without a browser: addresses, who may ask, what is read, and pages as data."""

import json
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from rollsight import runs
from rollsight.errors import RollsightError
from rollsight.explorer import Reading, Server, create_app
from rollsight.explorer.addresses import Address, address_of, path_of
from rollsight.explorer.context import Context
from rollsight.explorer.pages import PAGES
from rollsight.explorer.pages import runs as runs_page
from rollsight.explorer.theme import number, percent
from rollsight.explorer.trust import trust_of

SUMMARY = {
    "records": 16,
    "valid": 16,
    "kept_frac": 0.9,
    "scored": True,
    "target": "return",
    "trust_split_half": 0.7,
    "trust_split_half_permuted": 0.1,
}


def write_run(
    folder: Path, rounds: int = 3, *, first: int = 1, env: str = "CartPole-v1", seed: int = 0, **more
) -> Path:
    """A run folder by the real writer, with the columns that pages look at."""
    how = {"host": "stable-baselines3 2.9.2", "env": env, "algo": "ppo", "arm": "ppo", "seed": seed, **more}
    generator = np.random.default_rng(seed)
    with runs.create(folder, how) if first == 1 else runs.resume(folder) as writer:
        for round in range(first, first + rounds):
            scores = generator.normal(size=16)
            records = {
                "round": np.full(16, round),
                "env": np.arange(16) % 2,
                "step": np.arange(16) // 2,
                "action": list(generator.integers(0, 2, 16)),
                "reward": np.ones(16),
                "advantage": generator.normal(size=16),
                "score_return": scores,
                "kept": scores > -1,
                "valid": np.ones(16, bool),
            }
            writer.write_records(round, records)
            writer.write_round(round, SUMMARY | {"return_mean": 10.0 * round})
    return folder


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("/", Address("runs")),
        ("/runs/a", Address("overview", "a")),
        ("/runs/a%2Fb%20c/round/12", Address("round", "a/b c", 12)),
        ("/runs/a/record/3/0", Address("record", "a", 3, 0)),
        ("/runs/a/trust", Address("trust", "a")),
        ("/compare", Address("compare")),
    ],
)
def test_an_address_is_what_its_path_says(path, address):
    assert address_of(path) == address
    assert path_of(address) == path
    chosen = address.at(target="x&y=z", kept=None)
    assert address_of(*path_of(chosen).split("?")) == chosen


@pytest.mark.parametrize(
    "path", ["/runs", "/runs/a/round/x", "/runs/a/round/-1", "/runs/a/record/1", "/etc/passwd", "/runs/a/b"]
)
def test_other_paths_are_no_page(path):
    assert address_of(path) is None


@pytest.fixture
def folder(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"run-{seed}", seed=seed)
    return tmp_path


@pytest.mark.parametrize("name", ["..", "../run-0", "/etc", "run-0/records", "run-2", "run-0\0"])
def test_no_name_leads_outside_the_folders_that_are_served(folder, name):
    reading = Reading([folder / "run-0"])
    for read in (reading.path, reading.metadata, reading.rounds, reading.token):
        with pytest.raises(RollsightError, match="is shown here"):
            read(name)


def test_new_rounds_and_new_runs_show_as_they_come(folder):
    reading = Reading([folder])
    assert reading.names() == ["run-0", "run-1"]
    before = reading.token("run-0")
    assert reading.rounds("run-0")["round"].to_pylist() == [1, 2, 3]
    assert reading.token("run-0") == before
    write_run(folder / "run-0", rounds=2, first=4)
    write_run(folder / "run-2")
    assert reading.token("run-0") != before
    assert reading.rounds("run-0")["round"].to_pylist() == [1, 2, 3, 4, 5]
    assert "run-2" in reading.names()


def test_rounds_that_were_replaced_are_read_again(folder):
    reading = Reading([folder])
    assert reading.rounds("run-0")["return_mean"].to_pylist() == [10.0, 20.0, 30.0]
    with runs.resume(folder / "run-0", after=1) as writer:
        writer.write_round(2, {"return_mean": -1.0, "records": 0})
    assert reading.rounds("run-0")["return_mean"].to_pylist() == [10.0, -1.0]


def test_a_missing_file_is_said(folder):
    (folder / "run-0" / "records" / "round-000002.parquet").unlink()
    reading = Reading([folder])
    reading.records("run-0", 1)
    assert any("round 2" in sentence for sentence in reading.problems("run-0"))
    assert (reading.completeness("run-0").rows, reading.completeness("run-0").expected) == (32, 48)


def texts(component) -> str:
    """All that a page says, as JSON."""
    return json.dumps(
        component, default=lambda part: part.to_plotly_json() if hasattr(part, "to_plotly_json") else str(part)
    )


@pytest.mark.parametrize("page", ["overview", "trust", "files"])
def test_the_pages_of_a_run_say_what_is_in_it(folder, page):
    context = Context(Reading([folder]))
    said = texts(PAGES[page].layout(context, Address(page, "run-0")))
    assert "run-0" in said
    assert {"overview": "CartPole-v1", "trust": "rank agreement of halves 0.70", "files": "Records expected"}[
        page
    ].lower() in said.lower()


@pytest.mark.parametrize("page", ["overview", "trust", "files"])
def test_a_run_without_a_round_says_so(tmp_path, page):
    write_run(tmp_path / "begun", rounds=0)
    said = texts(PAGES[page].layout(Context(Reading([tmp_path])), Address(page, "begun")))
    assert "No round is complete yet" in said or page == "files"


def test_the_list_shows_a_run_whose_metadata_is_damaged(folder):
    (folder / "run-1" / "run.json").write_text("{")
    rows = {row["name"]: row for row in runs_page.table(Context(Reading([folder])))}
    assert rows["run-0"]["last"] == 30.0
    assert "run.json" in rows["run-1"]["warnings"]


def client(folder, **how):
    return create_app(Reading([folder]), **how).server.test_client()


def test_other_hosts_and_origins_are_refused(folder):
    ask = client(folder)
    assert ask.get("/", headers={"Host": "localhost:8050"}).status_code == 200
    assert ask.get("/", headers={"Host": "evil.example"}).status_code == 403
    assert ask.get("/", headers={"Host": "localhost.evil.example:8050"}).status_code == 403
    posted = {"Host": "localhost:8050", "Origin": "http://evil.example"}
    assert ask.post("/_dash-update-component", headers=posted, json={}).status_code == 403
    assert (
        ask.get("/_dash-layout", headers={"Host": "localhost:8050", "Sec-Fetch-Site": "cross-site"}).status_code == 403
    )


def test_a_token_is_asked_for_and_becomes_a_cookie(folder):
    ask = client(folder, hosts=("lab.example",), token="secret")
    host = {"Host": "lab.example"}
    assert ask.get("/", headers=host).status_code == 401
    assert ask.get("/?token=wrong", headers=host).status_code == 403
    answer = ask.get("/?token=secret", headers=host)
    assert answer.status_code == 302
    assert "secret" not in answer.headers["Location"]
    assert "HttpOnly" in answer.headers["Set-Cookie"]
    assert ask.get("/", headers=host).status_code == 200
    assert ask.get("/", headers={"Host": "other.example"}).status_code == 403


def test_pages_may_load_nothing_from_elsewhere(folder):
    answer = client(folder).get("/", headers={"Host": "localhost"})
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
    assert b"http://" not in answer.data.replace(b"http://localhost", b"")
    assert b"https://" not in answer.data


@pytest.mark.parametrize(
    "path", ["/assets/../../../../etc/passwd", "/assets/%2e%2e/%2e%2e/app.py", "/_dash-component-suites/dash/../../x"]
)
def test_no_path_leads_to_other_files(folder, path):
    answer = client(folder).get(path, headers={"Host": "localhost"})
    assert (
        answer.status_code == 404 or b"react-entry-point" in answer.data
    )  # the app's frame, which says there is no such page


def test_a_server_takes_the_next_free_port_and_a_prefix(folder):
    import urllib.request

    with Server([folder], port=0) as first, Server([folder], port=first.port, prefix="lab/rs") as second:
        assert second.port != first.port
        assert second.url == f"http://localhost:{second.port}/lab/rs/"
        for url in (second.url, f"http://localhost:{second.port}/"):  # a proxy may cut the prefix off
            page = urllib.request.urlopen(url).read().decode()
            assert "/lab/rs/_dash-component-suites" in page


def test_what_is_no_folder_of_runs_is_refused(tmp_path):
    with pytest.raises(RollsightError, match="is not a folder"):
        Reading([tmp_path / "absent"])


def test_two_folders_of_the_same_name_are_told_apart(tmp_path):
    write_run(tmp_path / "a" / "lander")
    write_run(tmp_path / "b" / "lander")
    reading = Reading([tmp_path / "a", tmp_path / "b"])
    assert reading.names() == ["lander", "b~lander"]
    shutil.rmtree(tmp_path / "b" / "lander")
    assert reading.names() == ["lander"]


def test_the_verdict_on_scores_knows_what_chance_gives():
    round = {"scored": True, "trust_split_half": 0.7, "trust_split_half_permuted": 0.1, "units_dropped": 0}
    assert trust_of(round).verdict == "believable"
    assert trust_of(round, np.array([0.9, -0.95, 0.9, 0.8, 0.99])).verdict == "noise"
    assert trust_of({**round, "trust_split_half": 0.3}).verdict == "weak"
    assert trust_of({"scored": False}).verdict == "unknown"
    assert trust_of({**round, "trust_split_half": None}).verdict == "unknown"
    assert "larger learning rate" in trust_of({**round, "units_dropped": 3, "trust_gradient_ratio": 4.0}).caution


def test_numbers_are_short():
    assert [number(value) for value in (1234567, 0.00012345, -12.3456, None, float("nan"), 3.0, True)] == [
        "1,234,567", "1.23e−04", "−12.3", "–", "–", "3", "yes",
    ]  # fmt: skip
    assert percent(0.12345) == "12.3 %"


def test_nothing_is_written_into_a_run(folder):
    def state():
        return {path: os.stat(path).st_mtime_ns for path in (folder / "run-0").rglob("*")}

    before = state()
    context = Context(Reading([folder]))
    for page in ("overview", "trust", "files"):
        PAGES[page].layout(context, Address(page, "run-0"))
    assert state() == before


def test_a_notebook_shows_the_app_or_says_where_it_is(tmp_path, monkeypatch):
    view = runs.open(write_run(tmp_path / "shown", rounds=1)).view(height=500)
    port = view.url.split(":")[2].split("/")[0]
    assert f'<iframe src="{view.url}" width="100%" height="500"' in view._repr_html_()
    for said in (repr(view), view._repr_html_()):  # a kernel that shows text only, or on another machine
        assert view.url in said
        assert f"ssh -L {port}:localhost:{port} MACHINE" in said
    asked = []
    colab = types.SimpleNamespace(serve_kernel_port_as_iframe=lambda port, height: asked.append((port, height)))
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    sys.modules["google.colab"].output = colab
    assert view._repr_html_() == ""
    assert asked == [(int(port), "500")]
