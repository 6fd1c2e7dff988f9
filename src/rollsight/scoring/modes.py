"""A policy as scoring sees it, left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from rollsight.errors import RollsightError


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, gradients on; modes and random states afterwards as before."""
    modules = list(module.modules())
    for part in modules:
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (part.training or part.running_mean is None):
            name = next(name for name, one in module.named_modules() if one is part)
            mode = "is in training mode" if part.training else "has no running statistics"
            mend = "call module.eval() before scoring" if part.running_mean is not None else "track_running_stats=True"
            raise RollsightError(
                f"BatchNorm layer {name!r} {mode}, where a record's loss depends on the other records; {mend}."
            )
    training = [part for part in modules if part.training]
    devices = [p.device for p in module.parameters() if p.device.type == "cuda"][:1]
    numpy_state = np.random.get_state(legacy=False)
    with torch.random.fork_rng(devices), torch.enable_grad():
        for part in training:
            part.training = False
        try:
            yield
        finally:
            for part in training:
                part.training = True
            np.random.set_state(numpy_state)
