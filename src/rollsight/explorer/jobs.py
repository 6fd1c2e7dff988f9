"""Long computations that a page was asked for, each in a process of its own: the server stays small and answers."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.queues import Queue
from typing import Any, Literal

from rollsight.errors import RollsightError
from rollsight.processes import start_worker

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Progress:
    """How far a computation is.

    Attributes:
        state: "none" where it was never asked for.
        done: steps that are done.
        total: steps in all; 0 while that is not known.
        error: why it failed, in one sentence; "" unless `state` is "failed".
    """

    state: Literal["none", "running", "finished", "failed"]
    done: int = 0
    total: int = 0
    error: str = ""


class Jobs:
    """At most one computation at a time for each key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress: dict[str, Progress] = {}

    def progress(self, key: str) -> Progress:
        """How far the computation of this key is."""
        with self._lock:
            return self._progress.get(key, Progress("none"))

    def start(self, key: str, work: Callable[..., None], *arguments: Any) -> None:
        """Begin, unless it is running. work(*arguments, report) is a function of a module, called in a new process."""
        with self._lock:
            if self._progress.get(key, Progress("none")).state == "running":
                return
            self._progress[key] = Progress("running")
        context = multiprocessing.get_context("spawn")
        said: Queue[Progress] = context.Queue()
        process = context.Process(target=_work, args=(said, work, arguments), daemon=True)
        process.start()
        threading.Thread(target=self._follow, args=(key, process, said), daemon=True).start()

    def _follow(self, key: str, process: Any, said: Queue[Progress]) -> None:
        while self.progress(key).state == "running":
            try:
                progress = said.get(timeout=0.5)
            except Exception:  # nothing said in the last half second
                if process.is_alive() or not said.empty():
                    continue
                progress = Progress("failed", error=f"the process ended with exit code {process.exitcode}: try again")
            with self._lock:
                self._progress[key] = progress


def _work(said: Queue[Progress], work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    start_worker()
    try:
        work(*arguments, lambda done, total: said.put(Progress("running", done, total)))
    except RollsightError as error:
        said.put(Progress("failed", error=str(error)))
    except Exception as error:
        said.put(Progress("failed", error=f"{type(error).__name__}: {error}"))
    else:
        said.put(Progress("finished"))
