"""Pools of worker processes end at once, in whatever they are, and with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# A parent with two workers: one puts more into a queue than its pipe holds, the other works on.
POOL = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from rollsight.processes import start_worker, terminate

def keep(given):
    global events
    events = given
    start_worker()

def work(number):
    print("worker", os.getpid(), flush=True)
    while number == 0:
        events.put("x" * 1000)
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with ProcessPoolExecutor(2, context, initializer=keep, initargs=(queue,)) as pool:
        try:
            futures = [pool.submit(work, number) for number in range(4)]
            print("parent", os.getpid(), flush=True)
            while True:
                time.sleep(0.05)
        except BaseException:
            terminate(pool)
            raise
"""


def started(tmp_path):
    """The parent, which leads a session of its own, and its workers' ids, once two of them are busy."""
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore interrupts, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    workers = set()
    while len(workers) < 2:
        kind, number = parent.stdout.readline().split()
        if kind == "worker":
            workers.add(int(number))
    time.sleep(0.3)  # the queue's pipe fills
    return parent, workers


def alive(pids):
    def runs(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
        except OSError:
            return False

    return [pid for pid in pids if runs(pid)]


def gone(pids, seconds=10.0):
    end = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pids)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks into /proc")
@pytest.mark.parametrize(
    ("sent", "to_all"), [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGKILL, False)], ids=str
)
def test_workers_end_with_what_ends_their_parent(tmp_path, sent, to_all):
    """The signal goes to the parent alone, as from an editor's stop button, or to all, as from a terminal."""
    parent, workers = started(tmp_path)
    try:
        (os.killpg if to_all else os.kill)(parent.pid, sent)
        _, error = parent.communicate(timeout=20)
        assert gone(workers)
    finally:
        if alive([parent.pid, *workers]):
            os.killpg(parent.pid, signal.SIGKILL)
    if sent == signal.SIGINT:
        assert error.count("Traceback") == 1  # the parent's, and none of a worker
        assert error.rstrip().endswith("KeyboardInterrupt")
