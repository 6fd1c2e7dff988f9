"""Many runs in processes side by side, with one stream of progress."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from rollsight.processes import no_interrupts_inherited, start_worker, terminate

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
    """A job has come this far.

    job: the job.
    rounds: done so far, a fraction inside a round.
    summary: of a round that just ended; None in between.
    finished: whether the job has ended.
    result: of a job that has ended.
    lost: whether it has ended without a result, because its process was killed twice.
    """

    job: AJob
    rounds: float
    summary: Mapping[str, Any] | None = None
    finished: bool = False
    result: Any = None
    lost: bool = False


def run_jobs(
    jobs: Sequence[AJob], processes: int, *, together: int = 1, seconds: float | None = None
) -> Iterator[Progress[AJob]]:
    """Run the jobs side by side, one thread each, yielding their progress.

    seconds: start the next `together` jobs (the arms of a seed) only while they are expected to end within it; the
    first two such groups always run.

    A job whose process is killed (by the system when memory runs out, mostly) is run once more; when that process is
    killed too, the job is `lost` and the others go on.
    """
    os.environ.update({name: value for name, value in ONE_THREAD.items() if name not in os.environ})
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    waiting, running = list(jobs), dict[Future[Any], tuple[AJob, ProcessPoolExecutor]]()
    durations: list[float] = []
    begun: dict[str, float] = {}
    killed = set[str]()
    # A pool for each process: one that is killed then takes no other with it.
    idle = [_worker(context, events) for _ in range(processes)]
    try:
        while waiting or running:
            while waiting and idle:
                begun_jobs = len(jobs) - len(waiting)
                first = begun_jobs % together == 0
                if seconds and first and begun_jobs >= 2 * together and durations:
                    left = seconds - (time.monotonic() - started)
                    if left < (together + 1) / processes * sum(durations) / len(durations):
                        waiting.clear()
                        break
                job, worker = waiting.pop(0), idle.pop()
                begun[job.name] = time.monotonic()
                running[_submit(worker, job)] = job, worker
            done = wait(running, timeout=0.1, return_when=FIRST_COMPLETED).done
            yield from _drain(events, jobs)
            for future in done:
                job, worker = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    terminate(worker)
                    worker = _worker(context, events)
                    if job.name in killed:
                        yield Progress(job, 0, finished=True, lost=True)
                    else:
                        killed.add(job.name)
                        begun[job.name] = time.monotonic()
                        running[_submit(worker, job)] = job, worker
                        continue
                else:
                    durations.append(time.monotonic() - begun[job.name])
                    yield Progress(job, job.rounds, finished=True, result=result)
                idle.append(worker)
        yield from _drain(events, jobs)
    finally:
        for worker in [*idle, *(worker for _, worker in running.values())]:
            terminate(worker)


def _worker(context: Any, events: Any) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=context, initializer=_start_process, initargs=(events,))


def _submit(worker: ProcessPoolExecutor, job: Job) -> Future[Any]:
    with no_interrupts_inherited():
        return worker.submit(_run, job)


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
    global _events
    _events = events
    start_worker()


def _run(job: Job) -> Any:
    def report(rounds: float, summary: Mapping[str, Any] | None) -> None:
        _events.put((job.name, rounds, None if summary is None else dict(summary)))

    return job.run(report)
