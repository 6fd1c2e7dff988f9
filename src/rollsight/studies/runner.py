"""Many runs in processes side by side, with one stream of progress."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

# One thread per process, for PyTorch and JAX: processes side by side would spin against each other.
ONE_THREAD = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}

Report: TypeAlias = Callable[[float, Mapping[str, Any] | None], None]
"""Takes the rounds done so far, a fraction inside a round, and the summary of a round that just ended."""


class Job(Protocol):
    """One run: what is shown of it, and what a process of its own does; it must survive pickling, as its result."""

    @property
    def name(self) -> str:
        """Unique among the jobs."""
        ...

    @property
    def rounds(self) -> int:
        """How many it will train."""
        ...

    def run(self, report: Report) -> Any:
        """Do it."""
        ...


AJob = TypeVar("AJob", bound=Job)


@dataclass(frozen=True)
class Progress(Generic[AJob]):
    """A job has come this far: rounds done, a fraction inside a round; the summary of a round that just ended; the
    result once it has finished."""

    job: AJob
    rounds: float
    summary: Mapping[str, Any] | None = None
    finished: bool = False
    result: Any = None


def run_jobs(
    jobs: Sequence[AJob], processes: int, *, together: int = 1, seconds: float | None = None
) -> Iterator[Progress[AJob]]:
    """Run the jobs side by side, one thread each, yielding their progress.

    seconds: start the next `together` jobs (the arms of a seed) only while they are expected to end within it; the
    first two such groups always run.
    """
    os.environ.update({name: value for name, value in ONE_THREAD.items() if name not in os.environ})
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    waiting, running = list(jobs), dict[Future[Any], AJob]()
    durations: list[float] = []
    begun: dict[str, float] = {}
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_process, initargs=(events,)) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    begun_jobs = len(jobs) - len(waiting)
                    first = begun_jobs % together == 0
                    if seconds and first and begun_jobs >= 2 * together and durations:
                        left = seconds - (time.monotonic() - started)
                        if left < (together + 1) / processes * sum(durations) / len(durations):
                            waiting.clear()
                            break
                    job = waiting.pop(0)
                    begun[job.name] = time.monotonic()
                    running[pool.submit(_run, job)] = job
                done = wait(running, timeout=0.1, return_when=FIRST_COMPLETED).done
                yield from _drain(events, jobs)
                for future in done:
                    job = running.pop(future)
                    result = future.result()
                    durations.append(time.monotonic() - begun[job.name])
                    yield Progress(job, job.rounds, finished=True, result=result)
            yield from _drain(events, jobs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise


def _drain(events: Any, jobs: Sequence[AJob]) -> Iterator[Progress[AJob]]:
    by_name = {job.name: job for job in jobs}
    while True:
        try:
            name, rounds, summary = events.get_nowait()
        except queue.Empty:
            return
        yield Progress(by_name[name], rounds, summary)


_events: Any = None  # the queue to the parent, in a worker process


def _start_process(events: Any) -> None:
    import torch

    global _events
    _events = events
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would otherwise train on, with nobody to hand the result to."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(job: Job) -> Any:
    def report(rounds: float, summary: Mapping[str, Any] | None) -> None:
        _events.put((job.name, rounds, None if summary is None else dict(summary)))

    return job.run(report)
