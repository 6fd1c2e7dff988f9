"""The explorer in a real browser: every page, its addresses, keys, controls, and runs that are damaged or in part."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright.sync_api")
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
    write_texts(folder / "texts")
    return folder


HOSTILE = [
    "<script>window.harmed = true</script>",
    "<img src=x onerror='window.harmed = true'>",
    "[a](javascript:window.harmed=true) **bold** | table |",
    "\u202eright to left\u202c",
    "x" * 100_000,
    "plain",
]


def write_texts(folder: Path) -> None:
    """A language run whose prompts and completions are markup, scripts, reordered and very long."""
    n = len(HOSTILE)
    with runs.create(
        folder, {"host": "trl 1.16.0", "env": "miniature", "algo": "grpo", "arm": "ppo", "seed": 0}
    ) as writer:
        for round in (1, 2):
            records = {
                "round": np.full(n, round),
                "group": np.arange(n) // 2,
                "prompt": HOSTILE,
                "completion": HOSTILE[::-1],
                "length": np.array([len(text) for text in HOSTILE]),
                "reward": np.linspace(-1, 1, n),
                "advantage": np.linspace(-1, 1, n),
                "score_sequence": np.linspace(-2, 1, n),
                "kept": np.arange(n) > 1,
                "valid": np.ones(n, bool),
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

    def text(self) -> str:
        return self.page.inner_text("main")


@pytest.fixture
def seen(browser: Any, url: str) -> Iterator[Seen]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    seen = Seen(page, url)
    yield seen
    page.close()
    assert seen.said == []


ADDRESSES = ["/", "/runs/whole-0", "/runs/whole-0/trust", "/runs/whole-0/files", "/runs/whole-0/behaviour"]


@pytest.mark.parametrize("path", ADDRESSES)
def test_every_page_opens_at_its_address_and_again_when_it_is_reloaded(seen: Seen, path: str) -> None:
    seen.open(path)
    first = seen.text()
    assert first
    seen.page.reload()
    seen.page.wait_for_selector("main h1")
    assert seen.text().split("\n")[0] == first.split("\n")[0]


@pytest.mark.parametrize("path", ADDRESSES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_have_no_serious_barrier(browser: Any, url: str, path: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    Seen(page, url).open(path)
    page.wait_for_timeout(300)
    found = Axe().run(page).response["violations"]
    page.close()
    serious = [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]
    assert serious == []


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
    page.wait_for_function("location.search.includes('by=arm')")
    page.fill("#runs-search", "whole")
    page.wait_for_function("document.querySelectorAll('.ag-pinned-left-cols-container .ag-row').length === 2")


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
    assert "round 2: no records of 16" in seen.text()


def test_a_run_that_is_being_written_is_followed(seen: Seen, folder: Path) -> None:
    with runs.create(
        folder / "live", {"host": "stable-baselines3 2.9.2", "env": "CartPole-v1", "algo": "ppo"}
    ) as writer:
        writer.write_round(1, {"records": 4, "return_mean": 1.0})
        seen.open("/runs/live", "#overview-facts")
        seen.page.wait_for_selector(".rs-running")
        writer.write_round(2, {"records": 4, "return_mean": 77.0})
        seen.page.wait_for_function("document.querySelector('#overview-facts').innerText.includes('77')")
    seen.page.wait_for_selector(".rs-running", state="detached")


def test_every_file_is_verified_on_request(seen: Seen) -> None:
    page = seen.open("/runs/whole-0/files")
    page.click("#files-check")
    page.wait_for_selector("text=Everything is there")
    seen.open("/runs/damaged/files").click("#files-check")
    page.wait_for_selector("text=rounds/round-000002.parquet")
