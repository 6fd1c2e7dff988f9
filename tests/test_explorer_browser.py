"""The explorer in a real browser: every page, its addresses, keys, controls, and runs that are damaged or in part."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
import pyarrow.csv
import pytest

pytest.importorskip("playwright.sync_api")
pytest.importorskip("axe_playwright_python")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright
from test_explorer_app import write_run

from rollsight import runs
from rollsight.explorer import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
    pytest.mark.xdist_group("browser"),  # one browser at a time
]
WAIT = 30_000  # milliseconds; machines are shared


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every kind: whole, begun, damaged, in part, of texts that would be markup."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        write_run(folder / f"whole-{seed}", rounds=5, seed=seed)
    write_run(folder / "begun", rounds=0)
    write_run(folder / "damaged", rounds=3)
    (folder / "damaged" / "rounds" / "round-000002.parquet").write_bytes(b"not a table")
    write_run(folder / "in-part", rounds=3)
    (folder / "in-part" / "records" / "round-000002.parquet").unlink()
    (folder / "no-metadata").mkdir()
    (folder / "no-metadata" / "run.json").write_text("{")
    write_run(folder / "crashed", rounds=2, run_settings={"rounds": 9})
    write_texts(folder / "texts", "trl 1.16.0")
    write_texts(folder / "rlhf", "rollsight 1.0.0")
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 runs."""
    folder = tmp_path_factory.mktemp("many")
    first = write_run(folder / "many-000", rounds=2, env="Acrobot-v1")
    for number in range(1, 200):
        shutil.copytree(first, folder / f"many-{number:03d}")
    return folder


HOSTILE = [
    "<script>window.harmed = true</script>",
    "<img src=x onerror='window.harmed = true'>",
    "[a](javascript:window.harmed=true) **bold** | table |",
    "\u202eright to left\u202c",
    "x" * 100_000,
    "plain",
]


def write_texts(folder: Path, host: str) -> None:
    """A language run whose prompts and completions are markup, scripts, reordered and very long."""
    n = len(HOSTILE)
    with runs.create(folder, {"host": host, "env": HOSTILE[1], "algo": "grpo", "arm": "ppo", "seed": 0}) as writer:
        for round in (1, 2):
            records = {
                "round": np.full(n, round),
                "group": np.arange(n) // 2,
                "prompt": [HOSTILE[row // 2] for row in range(n)],
                "completion": HOSTILE[::-1],
                "length": np.array([len(text) for text in HOSTILE]),
                "reward": np.linspace(-1, 1, n),
                "advantage": np.linspace(-1, 1, n),
                "score_sequence": np.linspace(-2, 1, n),
                "kept": np.arange(n) > 1,
                "valid": np.ones(n, bool),
                "token_texts": [[text[:40], text[40:80]] for text in HOSTILE[::-1]],
                "token_scores": [[-1.0, 0.5]] * n,
            }
            writer.write_records(round, records)
            writer.write_round(
                round, {"records": n, "valid": n, "reward_mean": 0.1 * round, "scored": True, "kept_frac": 0.7}
            )


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with Server([folder], port=0) as server:
        yield server.url.rstrip("/")


class Seen:
    """A page of the browser, and what it complained of."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.said: list[str] = []
        page.on("console", lambda message: self.said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.set_default_timeout(WAIT)

    def open(self, path: str, wait_for: str = "main h1, main .mantine-Alert-root, main .rs-empty") -> Page:
        self.page.goto(self.url + path)
        self.page.wait_for_selector(wait_for)
        return self.page

    def until(self, condition: str) -> None:
        """Wait for a condition in JavaScript. Not Playwright's own, which the page's security policy forbids."""
        started = time.monotonic()
        while not self.page.evaluate(condition):
            assert time.monotonic() - started < WAIT / 1000, condition
            self.page.wait_for_timeout(50)

    def text(self) -> str:
        return self.page.inner_text("main")


@pytest.fixture
def seen(browser: Any, url: str) -> Iterator[Seen]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    seen = Seen(page, url)
    yield seen
    page.close()
    assert seen.said == []


ADDRESSES = [
    "/",
    "/compare",
    "/compare?runs=whole-0,whole-1",
    *(
        f"/runs/whole-0{page}"
        for page in ("", "/round/2", "/record/2/3", "/findings", "/behaviour", "/trust", "/files")
    ),
    *(f"/runs/texts{page}" for page in ("", "/round/2", "/record/2/3", "/prompts")),
    "/runs/rlhf/prompts",
]


@pytest.mark.parametrize("path", ADDRESSES)
def test_every_page_opens_at_its_address_and_has_no_serious_barrier(seen: Seen, path: str) -> None:
    page = seen.open(path)
    assert page.inner_text("main h1")
    assert urlsplit(page.url).path == urlsplit(path).path
    if page.locator(".ag-root").count():
        page.wait_for_selector(".ag-center-cols-container .ag-row")  # until then AG Grid's own roles lack children
    page.wait_for_timeout(300)  # until figures are drawn
    # Only colours differ between the schemes.
    for scheme, rules in (("light", None), ("dark", {"runOnly": ["color-contrast"]})):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_selector(f"html[data-mantine-color-scheme={scheme}]")
        page.wait_for_timeout(150)  # colours fade
        found = Axe().run(page, options=rules).response["violations"]
        barriers = [(one["id"], node["html"][:200]) for one in found if one["impact"] != "minor"
                    for node in one["nodes"][:3]]  # fmt: skip
        assert barriers == [], scheme


def test_a_table_is_read_and_left_by_keyboard(seen: Seen) -> None:
    page = seen.open("/runs/whole-0/round/2", "#round-table .ag-row a")
    page.focus("#round-table .ag-header-cell")
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    seen.until("document.activeElement.matches('.ag-cell')")
    page.keyboard.press("Tab")
    seen.until("!document.activeElement.matches('.ag-cell')")
    page.keyboard.press("Shift+Tab")
    page.focus("#round-table .ag-header-cell")
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:text-matches('^Record')")


def test_links_and_the_back_button(seen: Seen) -> None:
    page = seen.open("/", ".ag-row")
    page.click("a.rs-link:text-is('whole-0')")
    page.wait_for_selector("h1:text-is('whole-0')")
    assert page.url.endswith("/runs/whole-0")
    page.click("nav a:text-is('Trust')")
    page.wait_for_selector("h1:text-is('Trust')")
    page.go_back()
    page.wait_for_selector("h1:text-is('whole-0')")
    page.go_back()
    page.wait_for_selector("h1:text-is('Runs')")


def test_choices_are_in_the_address(seen: Seen) -> None:
    page = seen.open("/?by=run", ".ag-row")
    page.click("text=Mean over seeds")
    seen.until("location.search.includes('by=arm')")
    page.fill("#runs-search", "whole")
    seen.until("document.querySelectorAll('.ag-pinned-left-cols-container .ag-row').length === 2")


def test_other_runs_say_what_is_wrong_with_them(seen: Seen) -> None:
    seen.open("/runs/begun")
    assert "No round is complete yet" in seen.text()
    seen.open("/runs/damaged")
    assert "damaged" in seen.text()
    seen.open("/runs/no-metadata")
    assert "run.json" in seen.text()
    seen.open("/runs/absent")
    assert "no run called" in seen.text()
    seen.open("/nowhere")
    assert "no such page" in seen.text()
    seen.open("/runs/in-part/files")
    assert "records of round 2 are missing" in seen.text()


def test_a_run_that_is_being_written_is_followed(seen: Seen, folder: Path) -> None:
    with runs.create(
        folder / "live", {"host": "stable-baselines3 2.9.2", "env": "CartPole-v1", "algo": "ppo"}
    ) as writer:
        writer.write_round(1, {"records": 4, "return_mean": 1.0})
        seen.open("/runs/live", "#overview-facts")
        seen.page.wait_for_selector(".rs-running")
        writer.write_round(2, {"records": 4, "return_mean": 77.0})
        seen.until("document.querySelector('#overview-facts').innerText.includes('77')")
    seen.page.wait_for_selector(".rs-running", state="detached")


def test_every_file_is_verified_on_request(seen: Seen) -> None:
    page = seen.open("/runs/whole-0/files")
    page.click("#files-check")
    page.wait_for_selector("text=Everything is there")
    seen.open("/runs/damaged/files").click("#files-check")
    page.wait_for_selector("text=rounds/round-000002.parquet")


def round_address(**chosen: str) -> str:
    return f"/runs/whole-0/round/2?{urlencode(chosen)}"


def test_a_round_is_filtered_sorted_and_exported_as_it_is_shown(seen: Seen, folder: Path) -> None:
    page = seen.open("/runs/whole-0/round/2", "#round-table .ag-row a")
    page.click("#round-only-kept")
    seen.until("document.querySelector('#round-chosen').innerText.includes(' of ')")
    page.click("#round-table [col-id=score_return] .ag-header-cell-label")
    seen.until("location.search.includes('sort=')")
    seen.page.reload()
    page.wait_for_selector("#round-table .ag-row a")
    seen.until("document.querySelector('#round-chosen').innerText.includes(' of ')")
    table = runs.open(folder / "whole-0").records(2)
    kept, scores = table["kept"].to_numpy(zero_copy_only=False), table["score_return"].to_numpy()
    expected = [int(row) for row in np.argsort(scores, kind="stable") if kept[row]]
    with page.expect_download() as download:
        page.click("#round-export-csv")
    exported = pyarrow.csv.read_csv(download.value.path())
    assert exported["record"].to_pylist() == expected
    np.testing.assert_allclose(exported["score_return"].to_numpy(), scores[expected])
    shown = page.eval_on_selector_all(
        "#round-table .ag-pinned-left-cols-container .ag-row",
        "rows => rows.map(row => [+row.getAttribute('row-index'), +row.querySelector('a').innerText])",
    )
    assert [record for _, record in sorted(shown)] == expected[: len(shown)]
    assert shown


@pytest.mark.parametrize(
    ("address", "condition"),
    [
        ("/?by=run&runs=whole-1&search=whole", "document.querySelectorAll('#runs-table .ag-row-selected').length >= 1"),
        (
            round_address(
                filter=json.dumps({"score_return": {"filterType": "number", "type": "lessThan", "filter": 0}}),
                sort="advantage:desc",
                columns="record,score_return,advantage",
            ),
            "document.querySelector('#round-chosen').innerText.includes(' of ') && "
            "document.querySelector('#round-table [col-id=advantage][aria-sort=descending]') && "
            "!document.querySelector('#round-table [col-id=reward]')",
        ),
        ("/runs/whole-0/record/2/3?target=return", "document.querySelector('#record-facts')"),
        (
            "/runs/texts/prompts?round=1&group=2&show=harmful&order=best&search=x",
            "document.querySelector('#prompts-round').value === '1' && "
            "document.querySelector('#prompts-show').value === 'Harmful' && "
            "document.querySelector('#prompts-order').value === 'Best score first' && "
            "document.querySelector('#prompts-search').value === 'x'",
        ),
        (
            "/compare?runs=whole-0,whole-1&a=whole-1&b=whole-0&round=3",
            "document.querySelector('#compare-a').value === 'whole-1' && "
            "document.querySelector('#compare-round').value === '3'",
        ),
    ],
)
def test_an_address_holds_every_kind_of_choice(seen: Seen, address: str, condition: str) -> None:
    seen.open(address)
    seen.until(f"!!({condition})")


def test_keys_lead_to_the_neighbours_and_up(seen: Seen) -> None:
    page = seen.open("/runs/whole-0/round/2", "#round-table .ag-row")
    for key, heading in (("ArrowRight", "Round 3"), ("k", "Round 2"), ("ArrowUp", "whole-0")):
        page.keyboard.press(key)
        page.wait_for_selector(f"h1:text-is('{heading}')")
    page = seen.open("/runs/whole-0/record/2/3")
    for key, heading in (("j", "Record 4"), ("ArrowLeft", "Record 3"), ("u", "Round 2")):
        page.keyboard.press(key)
        page.wait_for_selector(f"h1:text-is('{heading}')")
    page = seen.open("/runs/texts/prompts")
    page.keyboard.press("ArrowRight")
    seen.until("location.search.includes('group=')")
    for _ in range(100):  # the page of the other prompt may still be on its way, with a search field of its own
        page.keyboard.press("/")
        page.wait_for_timeout(300)
        if page.evaluate("document.activeElement.id === 'prompts-search'"):
            break
    else:
        raise AssertionError("the search field has no focus")


def test_text_of_records_has_no_effect(seen: Seen) -> None:
    for group in range(3):
        page = seen.open(f"/runs/texts/prompts?round=2&group={group}", "#prompts-body")
        assert page.evaluate("window.harmed") is None
    assert HOSTILE[0] in seen.open("/runs/texts/prompts?round=2&group=0").inner_text("main")
    for path in (
        "/?runs=texts",
        "/runs/texts",
        "/runs/texts/round/2",
        "/runs/texts/record/2/5",
        "/runs/texts/findings",
    ):
        page = seen.open(path)
        page.wait_for_timeout(300)
        assert page.evaluate("window.harmed") is None
        assert page.query_selector("main img[src=x]") is None
    assert HOSTILE[0] in seen.open("/runs/texts/record/2/5").inner_text("main")


def test_two_hundred_runs_are_searched(seen: Seen, many: Path) -> None:
    with Server([many], port=0) as server:
        seen.url = server.url.rstrip("/")
        page = seen.open("/", ".ag-row")
        page.fill("#runs-search", "many-19")
        seen.until("document.querySelectorAll('.ag-pinned-left-cols-container .ag-row').length === 10")
        page.goto("about:blank")  # it asks for new runs until it is left


def test_a_run_that_stopped_says_so_and_one_without_snapshots_what_to_do(seen: Seen) -> None:
    page = seen.open("/runs/crashed")
    page.wait_for_selector(".rs-stopped:text-is('stopped early')")
    assert "no snapshots" in seen.open("/runs/crashed/behaviour").inner_text("main")
    found = seen.open("/runs/crashed/findings", "#findings-list").inner_text("main")
    assert re.search(r"Records of \d+ of 2 rounds were read", found)
