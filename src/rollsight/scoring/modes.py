"""A policy as scoring sees it, left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from rollsight.errors import RollsightError


@contextmanager
def scoring_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, gradients on; modes and random states afterwards as before."""
    modules = list(module.modules())
    for part in modules:
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.scale_grad_by_freq and part.weight.requires_grad:
            raise RollsightError(
                f"Embedding layer {_name(module, part)!r} has scale_grad_by_freq=True, where a record's gradient "
                "depends on the other records; use scale_grad_by_freq=False."
            )
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (part.training or part.running_mean is None):
            mode = "is in training mode" if part.training else "has no running statistics"
            has = part.running_mean is not None
            advice = "call module.eval() before scoring" if has else "track_running_stats=True"
            raise RollsightError(
                f"BatchNorm layer {_name(module, part)!r} {mode}, where a record's loss depends on the other records; "
                f"{advice}."
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


def _name(module: nn.Module, part: nn.Module) -> str:
    return next((name for name, one in module.named_modules() if one is part), "")
