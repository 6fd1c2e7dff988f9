"""Worker processes of a pool: how they begin, and how all of them end at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

_GRACE = 5.0  # seconds that a worker has to end before it is killed


def start_worker() -> None:
    """Initializer of a pool's workers: one thread each for PyTorch, and an end with the parent, however that ends.

    An interrupt from the terminal reaches the workers too; it is the parent who ends them then (`terminate`).
    """
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def terminate(pool: ProcessPoolExecutor) -> None:
    """End the workers of a pool now, whatever they are doing, and return when they have ended.

    Nothing is waited for that an ended worker would have to send: neither its result nor what it put into a queue.
    """
    # Before `shutdown`, which forgets them.
    workers, results = list((pool._processes or {}).values()), pool._result_queue
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(_GRACE)
        if worker.is_alive():
            worker.kill()
    if results is not None:
        results._writer.close()  # type: ignore[attr-defined]  # or the pool's thread waits for the rest of a result


@contextmanager
def no_interrupts_inherited() -> Iterator[None]:
    """Workers that start in this block do not see SIGINT, from their first moment on: an interrupt while they import
    would print their tracebacks. One that comes meanwhile reaches this process after the block."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """A worker whose parent was killed would otherwise go on, with nobody to hand the result to."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
