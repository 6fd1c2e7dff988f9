"""Studies run their jobs in processes that may be killed, and that end with the study."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from rollsight.cli.progress import follow_jobs
from rollsight.studies.runner import Report, run_jobs


@dataclass(frozen=True)
class Job:
    """Ends its own process as often as it is told, as the system does when memory runs out, then returns its name."""

    name: str
    folder: Path
    kills: int = 0
    rounds: int = 1

    def run(self, report: Report) -> str:
        report(0.5, None)
        tries = self.folder / self.name
        tries.write_text(tries.read_text() + "." if tries.exists() else ".")
        if len(tries.read_text()) <= self.kills:
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.5)
        return self.name


def test_a_job_whose_process_is_killed_is_tried_once_more_and_the_others_go_on(tmp_path: Path) -> None:
    jobs = [Job("fine", tmp_path), Job("once", tmp_path, 1), Job("always", tmp_path, 9), Job("late", tmp_path)]
    ended = [event for event in run_jobs(jobs, 2) if event.finished]
    assert {event.job.name: event.result for event in ended if not event.lost} == {
        name: name for name in ("fine", "once", "late")
    }
    assert [event.job.name for event in ended if event.lost] == ["always"]
    tries = {job.name: len((tmp_path / job.name).read_text()) for job in jobs}
    assert tries == {"fine": 1, "once": 2, "always": 2, "late": 1}


def test_a_lost_job_is_said_by_name(tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    said = StringIO()
    jobs = [Job("fine", tmp_path), Job("[b]always", tmp_path, 9)]
    results = follow_jobs(Console(file=said, width=200), run_jobs(jobs, 2), lambda _: "", total=2)
    assert [event.result for event in results] == ["fine"]
    assert "[b]always: no result, the process was killed twice" in said.getvalue()
    assert "1 of 2 runs done: fine\n" in said.getvalue()
    assert "2 of 2 runs done: [b]always, without a result\n" in said.getvalue()


_ENDLESS = """
import signal, sys, time
from dataclasses import dataclass
from rollsight.studies.runner import run_jobs

@dataclass(frozen=True)
class Endless:
    name: str
    rounds: int = 1
    def run(self, report):
        while True:
            for _ in range(1000):
                report(0.1, {"text": "x" * 1000})  # more than a pipe holds, which nobody reads any more
            time.sleep(0.01)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    try:
        for number, event in enumerate(run_jobs([Endless("a"), Endless("b"), Endless("c")], 2)):
            if number == 0:
                print("training", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
"""


@pytest.mark.parametrize("everyone", [False, True], ids=["stop button", "terminal"])
def test_an_interrupt_ends_parent_and_workers(tmp_path: Path, everyone: bool) -> None:
    script = tmp_path / "endless.py"
    script.write_text(_ENDLESS)
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "training\n"
        workers = psutil.Process(parent.pid).children(recursive=True)
        assert len(workers) >= 2
        if everyone:
            os.killpg(parent.pid, signal.SIGINT)
        else:
            parent.send_signal(signal.SIGINT)
        out, err = parent.communicate(timeout=120)
        assert (parent.returncode, out) == (130, "interrupted\n")
        assert "Traceback" not in err
        assert psutil.wait_procs(workers, timeout=20)[1] == []
    finally:
        with contextlib.suppress(ProcessLookupError):  # the whole session, whatever failed above
            os.killpg(parent.pid, signal.SIGKILL)
