"""Which backend covers a policy: the first that does, and why the ones before it do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from rollsight.errors import RollsightError

Result = TypeVar("Result")


class NotCovered(RollsightError):
    """A backend would not give autograd's gradient of this policy. `why` is the message without its advice."""

    def __init__(self, backend: str, why: str) -> None:
        self.why = f"backend {backend!r} does not cover {why}"
        instead = "backend='jvp'" if backend == "layerwise" else "backend='auto', which takes the first that does"
        super().__init__(f"{self.why}; use {instead}.")


class NoBackend(RollsightError):
    """No fast backend covers this policy; the message says why for each."""


def first_that_covers(ways: Mapping[str, Callable[[], Result]]) -> tuple[Result, str, str]:
    """What the first backend that covers the policy gives, its name, and why those before it do not ("" for the first).

    ways: by backend, in order. Raises `NoBackend` where all fail; what the first raises other than `NotCovered` is the
    policy's own error and passes, as does a lack of memory.
    """
    failures: list[str] = []
    cause: Exception | None = None
    for name, way in ways.items():
        try:
            return way(), name, "; ".join(failures)
        except NotCovered as failure:
            failures.append(failure.why)
            cause = failure
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as failure:  # NotImplementedError is one: PyTorch has no derivative of some operation
            if name == "layerwise":
                raise
            failures.append(f"backend {name!r} failed: {str(failure).strip().splitlines()[0].rstrip('.')}")
            cause = failure
    raise NoBackend(
        f"{'; '.join(failures)}. No fast backend covers this policy; backend='oracle' is exact and slow."
    ) from cause
