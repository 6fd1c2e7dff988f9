"""Random numbers for what happens alongside training, so that training does not depend on it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from rollsight.streams import seed_from


@contextmanager
def streams_of_their_own(*key: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global streams keyed by (seed, round, purpose); afterwards they go on as before."""
    seed = seed_from(*key)
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


@contextmanager
def restored_after_failure() -> Iterator[None]:
    """Where the block raises, the three global streams go on as if it had not been there."""
    python, legacy, state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    except BaseException:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(state)
        raise
