"""Many runs: arms times seeds, in processes side by side, with one stream of progress."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rollsight.studies.training_run import RunSettings, run_training

Arm: TypeAlias = Literal["ppo", "iif", "random"]


@dataclass(frozen=True)
class Job:
    """One run of a study: its name, settings and folder."""

    name: str
    settings: RunSettings
    out: Path


@dataclass(frozen=True)
class Progress:
    """A job has come this far: rounds done, a fraction inside a round; the summary of a round that just ended."""

    job: Job
    rounds: float
    summary: Mapping[str, Any] | None = None
    finished: bool = False


def jobs_of(base: RunSettings, arms: Sequence[Arm], drop: float, seeds: Sequence[int], folder: Path) -> list[Job]:
    """Every arm for each seed in turn: all arms share a seed's random streams."""
    rules = {"ppo": None, "iif": f"negative:{drop}", "random": f"random:{drop}"}
    jobs = []
    for seed in seeds:
        for arm in arms:
            name = f"{arm}-seed{seed}"
            settings = replace(base, seed=seed, selection=rules[arm], arm=arm).resolved()
            jobs.append(Job(name, settings, folder / name))
    return jobs


def run_jobs(jobs: Sequence[Job], arms: int, processes: int, seconds: float | None = None) -> Iterator[Progress]:
    """Run the jobs side by side, one thread each, yielding their progress.

    seconds: start the arms of a further seed only while they are expected to end within it; the first two seeds always
    run.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    waiting, running = list(jobs), dict[Future[None], Job]()
    durations: list[float] = []
    begun: dict[str, float] = {}
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_process, initargs=(events,)) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    first_of_seed = (len(jobs) - len(waiting)) % arms == 0
                    if seconds and first_of_seed and len(jobs) - len(waiting) >= 2 * arms and durations:
                        left = seconds - (time.monotonic() - started)
                        if left < (arms + 1) / processes * sum(durations) / len(durations):
                            waiting.clear()
                            break
                    job = waiting.pop(0)
                    begun[job.name] = time.monotonic()
                    running[pool.submit(_run, job)] = job
                done = wait(running, timeout=0.1, return_when=FIRST_COMPLETED).done
                yield from _drain(events, jobs)
                for future in done:
                    job = running.pop(future)
                    future.result()
                    durations.append(time.monotonic() - begun[job.name])
                    yield Progress(job, job.settings.rounds or 0, finished=True)
            yield from _drain(events, jobs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise


def _drain(events: Any, jobs: Sequence[Job]) -> Iterator[Progress]:
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


def _run(job: Job) -> None:
    def report(rounds: float, summary: Mapping[str, Any] | None) -> None:
        _events.put((job.name, rounds, None if summary is None else dict(summary)))

    run_training(job.settings, job.out, on_progress=report)
