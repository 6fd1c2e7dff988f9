"""What a viewer of run folders waits for: pages of the explorer in a browser, and the questions behind them.

    python benchmarks/explorer.py [--folder FOLDER] [--only reading|pages|live]

Makes a run of 1,000 rounds of 2,048 records, 200 runs of 20 rounds of 64 records and a run of 20 rounds of 512
completions with the real writer, where the folder (a temporary one otherwise) does not have them yet, and prints

- reading: milliseconds of what `rollsight.runs` answers, in this process: the first call, then median and largest;
- pages: milliseconds until the first page is there, in a browser with an empty cache: until the rows of the table and
  the links in it can be used ("usable"), and until its figure is drawn too ("drawn"); and from a click or a key until
  what was asked for is shown and drawn. Beside them the processor time of the server and of the page's main thread,
  which other work on the machine changes less; the server's memory;
- live: seconds of a round, and processor time, of a real training with a browser that follows it and without.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from rollsight import runs

REPEATS = 15
LONG, RECORDS = 1000, 2048
MANY, ROUNDS, FEW = 200, 20, 64
TEXTS, TOKENS = 512, 32
OPENED = 7  # times that every step of a page is timed
STARTED = 5  # times that a first page is
_ENVS = 8


def columns_of(round: int, records: int, rng: np.random.Generator) -> dict[str, Any]:
    """The records of a CartPole-like round under the names of the run schema."""
    step, env = np.divmod(np.arange(records), _ENVS)
    score = rng.standard_normal(records)
    valid = rng.random(records) > 0.01
    return {
        "round": np.full(records, round),
        "env": env,
        "step": step,
        "episode": round * _ENVS + env,
        "episode_step": step,
        "action": rng.integers(0, 2, records),
        "reward": np.ones(records),
        **{name: rng.standard_normal(records).astype(np.float32) for name in ("value", "advantage", "return")},
        "log_prob": -rng.random(records).astype(np.float32),
        "entropy": rng.random(records).astype(np.float32),
        "score_return": np.where(valid, score, 0.0).astype(np.float32),
        "kept": valid & (score > -0.5),
        "valid": valid,
        "episode_return": [None] * records,
        "obs": rng.standard_normal((records, 4)).astype(np.float32),
        "episode_start": ['{"seed": 1}' if one == 0 else None for one in step],
    }


def summary_of(round: int, columns: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The round's summary under the names of the run schema."""
    names = [column.name for column in runs.schema.ROUNDS if "*" not in column.name and column.type == "number"]
    valid = int(columns["valid"].sum())
    counts = {"records": len(columns["valid"]), "valid": valid, "timesteps": round * len(columns["valid"])}
    return {**{name: float(rng.standard_normal()) for name in names}, **counts, "target": "return", "warnings": None}


def write(path: Path, rounds: int, records: int, seed: int) -> None:
    """A run folder with the real writer."""
    rng = np.random.default_rng(seed)
    metadata = {"host": "own", "env": "CartPole-v1", "algo": "ppo", "arm": f"arm {seed % 4}", "seed": seed}
    with runs.create(path, metadata) as writer:
        for round in range(1, rounds + 1):
            columns = columns_of(round, records, rng)
            writer.write_records(round, columns)
            writer.write_round(round, summary_of(round, columns, rng))


def write_texts(path: Path, rounds: int, completions: int) -> None:
    """A run of a language model with token scores."""
    rng = np.random.default_rng(0)
    words = np.array(["the", "river", "turns", "north", "again", "and", "no", "one", "asks", "why"])
    metadata = {"host": "trl 1.16.0", "env": "miniature", "algo": "grpo", "arm": "ppo", "seed": 0}
    with runs.create(path, metadata) as writer:
        for round in range(1, rounds + 1):
            tokens = words[rng.integers(0, len(words), (completions, TOKENS))]
            score, valid = rng.standard_normal(completions), np.ones(completions, bool)
            writer.write_records(
                round,
                {
                    "round": np.full(completions, round),
                    "group": np.arange(completions) // 8,
                    "prompt": [f"prompt {one // 8}" for one in range(completions)],
                    "completion": [" ".join(row) for row in tokens],
                    "length": np.full(completions, TOKENS),
                    "reward": rng.standard_normal(completions),
                    "advantage": rng.standard_normal(completions),
                    "score_sequence": score,
                    "kept": score > -0.5,
                    "valid": valid,
                    "token_texts": [[f"{word} " for word in row] for row in tokens],
                    "token_scores": list(rng.standard_normal((completions, TOKENS))),
                },
            )
            writer.write_round(round, {"records": completions, "reward_mean": float(score.mean()), "scored": True})


def prepare(folder: Path) -> tuple[Path, list[Path]]:
    """The long run and the many runs, made where they are not there yet."""
    if not runs.is_run(folder / "texts"):
        write_texts(folder / "texts", ROUNDS, TEXTS)
    started = time.perf_counter()
    long, many = folder / "long", [folder / "many" / f"run-{number:03d}" for number in range(MANY)]
    if not runs.is_run(long):
        write(long, LONG, RECORDS, seed=0)
        print(f"made {LONG} rounds of {RECORDS} records in {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    for number, path in enumerate(many):
        if not runs.is_run(path):
            write(path, ROUNDS, FEW, seed=number)
    print(f"made {MANY} runs of {ROUNDS} rounds in {time.perf_counter() - started:.1f} s")
    return long, many


def timed(name: str, call: Callable[[int], Any], repeats: int = REPEATS) -> None:
    """Print milliseconds of the first call, then median and largest of the others."""
    times = []
    for repeat in range(repeats):
        started = time.perf_counter()
        call(repeat)
        times.append(1000 * (time.perf_counter() - started))
    rest = times[1:] or times
    print(f"| {name} | {times[0]:.0f} | {statistics.median(rest):.1f} | {max(rest):.1f} |")


def measure_reading(long: Path) -> None:
    """The table of what `rollsight.runs` answers."""
    run = runs.open(long)
    print("| question | first, ms | median, ms | largest, ms |\n|---|---|---|---|")
    timed("completeness of the long run", lambda i: runs.completeness(runs.open(long)), 5)
    names = ["round", "return_mean", "kept_frac", "approx_kl"]
    timed("four columns of 1,000 rounds", lambda i: run.frame("rounds", columns=names, as_="arrow"), 3)
    timed("all columns of 1,000 rounds", lambda i: run.frame("rounds", as_="arrow"), 3)
    print(f"memory at most: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")


@contextmanager
def served(*arguments: str) -> Iterator[tuple[str, int]]:
    """The explorer in a process of its own: its address, and the process."""
    command = [sys.executable, "-m", "rollsight", "view", *arguments, "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1].rstrip("/"), process.pid
        finally:
            process.terminate()


@contextmanager
def browser_page() -> Iterator[Any]:
    """A page of Chromium."""
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(bypass_csp=True, viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        yield page
        browser.close()


def cpu_ms(process: int) -> float:
    """Milliseconds of processor time that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(process: int) -> int:
    """The most memory that a process has had."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


# Clicks, or presses a key, and waits until an element with a text is there, or the address has it, and all figures and
# two frames are drawn.
UNTIL = """([click, selector, text]) => new Promise((done) => {
    const started = performance.now();
    if (click.startsWith("key ")) {
        document.body.dispatchEvent(new KeyboardEvent("keydown", { key: click.slice(4), bubbles: true }));
    } else document.querySelector(click).click();
    const there = () => selector === "address" ? decodeURIComponent(location.search).includes(text)
        : [...document.querySelectorAll(selector)].some((one) => one.textContent.includes(text));
    const drawn = () => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - started)));
    const waiting = ".dash-graph--pending, .dash-graph:not(:has(.main-svg))";
    const look = () => there() && !document.querySelector(waiting) ? drawn() : setTimeout(look, 4);
    look();
})"""
# What a step is called, where it begins, what is clicked (or "key " and the key), and what shows that it is done: an
# element and its text.
Step = tuple[str, str, str, str, str]
THIRD = "#prompts-body a{}:nth-of-type(3)"
TAB = "nav a[href$='{}']"
LONG_STEPS: list[Step] = [
    ("overview", "/", "a.rs-link[href$='/runs/long']", "#overview-curves .main-svg", ""),
    ("round", "/runs/long", TAB.format("/round/1000"), "#round-table .ag-row", "0"),
    ("next round", "/runs/long/round/500", "main a[href*='/round/501']", "h1", "501"),
    ("next round by key", "/runs/long/round/500", "key ArrowRight", "h1", "501"),
    ("filter", "/runs/long/round/500", "#round-only-dropped", "#round-chosen", " of "),
    ("sort", "/runs/long/round/500", "[col-id=advantage] .ag-header-cell-label", "address", "advantage:"),
    ("record", "/runs/long/round/500", "#round-table .ag-row a", "#record-facts", ""),
    ("trust", "/runs/long", TAB.format("/trust"), "main .main-svg", ""),
    ("files", "/runs/long", TAB.format("/files"), "h1", "Files"),
]
MANY_STEPS: list[Step] = [
    ("draw each run", "/", "#runs-by input[value=run]", "address", "by=run"),
    ("overview of one of 200", "/", ".ag-row[row-index='3'] a.rs-link", "#overview-curves .main-svg", ""),
]
TEXT_STEPS: list[Step] = [
    ("prompts", "/runs/texts", TAB.format("/prompts"), "#prompts-body", "prompt"),
    (
        "another prompt",
        "/runs/texts/prompts",
        "#prompts-body a:nth-of-type(3)",
        "#prompts-body a.rs-chosen:nth-of-type(3)",
        "",
    ),
]
READY = {"/": ".ag-row a.rs-link", "/runs/long/round/500": "#round-table .ag-row a"}


def measure_pages(long: Path, many: list[Path]) -> None:
    """The table of the explorer in a browser."""
    print(f"\nload of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(
        "| step | median, ms | largest, ms | server's processor, ms | page's main thread, ms |\n|---|---|---|---|---|"
    )
    for folder, steps in ((long, LONG_STEPS), (many[0].parent, MANY_STEPS), (long.parent / "texts", TEXT_STEPS)):
        with browser_page() as page:
            _first_page(page, folder)
            with served(str(folder)) as (url, process):
                print(f"memory of the server of {folder.name} at its start: {memory_mb(process)} MB")
                for step in steps:
                    _step(page, step, url, process)
                print(f"memory of the server of {folder.name} at most: {memory_mb(process)} MB")


def _first_page(page: Any, folder: Path) -> None:
    """A server and a browser that have read nothing yet, each time."""
    usable, drawn, server, thread = [], [], [], []
    for _ in range(STARTED):
        with served(str(folder)) as (url, process):
            empty = page.context.browser.new_context(bypass_csp=True, viewport=page.viewport_size)
            first = empty.new_page()
            session = empty.new_cdp_session(first)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            before, started = cpu_ms(process), time.perf_counter()
            first.goto(url, wait_until="commit")
            first.wait_for_selector(READY["/"])
            usable.append(1000 * (time.perf_counter() - started))
            first.wait_for_selector("#runs-curves .main-svg")
            drawn.append(1000 * (time.perf_counter() - started))
            server.append(cpu_ms(process) - before)
            thread.append(_task_ms(session))
            empty.close()
    for what, shown in (("usable", usable), ("drawn", drawn)):
        cost = [f"{statistics.median(values):.0f}" if what == "drawn" else "" for values in (server, thread)]
        name = f"first page of {folder.name}, {what}"
        print(f"| {name} | {statistics.median(shown):.0f} | {max(shown):.0f} | {' | '.join(cost)} |", flush=True)


def _step(page: Any, step: Step, url: str, process: int) -> None:
    name, at, click, selector, text = step
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    shown, server, thread = [], [], []
    for _ in range(OPENED):
        page.goto(url + at)
        page.wait_for_selector(READY.get(at, "main h1"))
        if not click.startswith("key "):
            page.wait_for_selector(click, state="attached")  # a choice's own input is hidden behind its label
        page.wait_for_function("!document.querySelector('.dash-graph--pending')")
        page.wait_for_timeout(700)
        before = cpu_ms(process), _task_ms(session)
        shown.append(page.evaluate(UNTIL, [click, selector, text]))
        server.append(cpu_ms(process) - before[0])
        thread.append(_task_ms(session) - before[1])
    middle = [statistics.median(values) for values in (shown, server, thread)]
    print(f"| {name} | {middle[0]:.0f} | {max(shown):.0f} | {middle[1]:.0f} | {middle[2]:.0f} |", flush=True)


def _task_ms(session: Any) -> float:
    metrics = session.send("Performance.getMetrics")["metrics"]
    return 1000 * float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))


def measure_live(folder: Path) -> None:
    """Rounds of a training that is followed, and of the same one that is not, in turns; and its processor time."""
    rounds: dict[bool, list[float]] = {True: [], False: []}
    processor: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(4):
        out, followed = folder / "live" / f"{time.time_ns()}", bool(turn % 2)
        command = [sys.executable, "-m", "rollsight", "train", "CartPole-v1", "--rounds", "10", "--n-steps", "1024"]
        run = subprocess.Popen([*command, "--eval-episodes", "1", "--out", str(out)], stdout=subprocess.DEVNULL)
        while not runs.is_run(out):
            time.sleep(0.05)
        with viewer(out) if followed else nullcontext():
            _, _, used = os.wait4(run.pid, 0)
        run.returncode = 0
        processor[followed].append(used.ru_utime + used.ru_stime)
        table = runs.open(out).rows("rounds", ["time_collect", "time_score", "time_train", "time_write"])
        rounds[followed].extend(np.sum([pc.fill_null(column, 0).to_numpy() for column in table.columns], axis=0)[1:])
    for name, seconds in (("a round", rounds), ("the training's processor time", processor)):
        watched, alone = (statistics.median(seconds[one]) for one in (True, False))
        print(f"\nseconds of {name}: {alone:.3f} alone, {watched:.3f} followed, ratio {watched / alone:.2f}")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


@contextmanager
def viewer(run: Path) -> Iterator[None]:
    """A browser that shows the run's overview."""
    with served(str(run)) as (url, _), browser_page() as page:
        page.goto(f"{url}/runs/{run.name}")
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the runs are, or are made and stay")
    parser.add_argument("--only", choices=("reading", "pages", "live"), help="one of the three tables")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        long, many = prepare(folder)
        if options.only in (None, "reading"):
            measure_reading(long)
        if options.only in (None, "pages"):
            measure_pages(long, many)
        if options.only in (None, "live"):
            measure_live(folder)


if __name__ == "__main__":
    main()
