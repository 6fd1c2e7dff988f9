"""Sequences of unequal length in one tensor: prompts are padded on the left, completions on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rollsight.records import Records


def stack(columns: Sequence[Tensor], fill: int, left: bool) -> Tensor:
    """One (N, W, ...) tensor of (n, w, ...) ones, each padded with `fill` on one side."""
    width = max(column.shape[1] for column in columns)
    parts = []
    for column in columns:
        missing = width - column.shape[1]
        others = (0, 0) * (column.dim() - 2)  # padding is given from the last dimension on
        parts.append(F.pad(column, (*others, *((missing, 0) if left else (0, missing))), value=fill))
    return torch.cat(parts)


def trimmed(records: Records) -> Records:
    """The records without the columns in which every prompt is padding: a forward over them would be wasted."""
    obs = records.obs
    assert not isinstance(obs, Tensor)
    start = int(obs["attention_mask"].any(0).long().argmax())
    return replace(records, obs={**obs, **{name: obs[name][:, start:] for name in ("input_ids", "attention_mask")}})


def on_cpu(columns: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The columns where another process, with another device, can read them."""
    return tuple(column.cpu() for column in columns)
