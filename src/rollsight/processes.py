"""Worker processes that end when the work is stopped, whoever was interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

_PATIENCE = 5.0  # seconds from SIGTERM to SIGKILL


def terminate(pool: ProcessPoolExecutor) -> None:
    """End a pool's processes now, whatever they do, and the pool. A pool whose processes have ended is only closed."""
    processes = list((pool._processes or {}).values())  # before `shutdown`, which forgets them
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
    pool.shutdown(wait=True)  # the pool's own thread, which has seen by now that its processes are gone


@contextmanager
def no_interrupts_inherited() -> Iterator[None]:
    """Processes started in this block do not see SIGINT, which a terminal sends to parent and workers alike: the parent
    ends them, and they print no tracebacks. An interrupt that comes meanwhile is delivered after the block."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
