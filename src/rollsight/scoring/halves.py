"""Two halves of a buffer, split by episode, for scores that must not see their own record."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rollsight.records import Records
from rollsight.streams import stream


def split_halves(records: Records, seed: int) -> Tensor:
    """(N,) booleans: which records are in the first half. Whole episodes stay together and go, in random order, to the
    half with fewer records; with fewer than two episodes (or none named) the halves are random records instead."""
    rng = stream(seed)
    n = len(records)
    episodes = records.ids.get("episode")
    column = np.zeros(n) if episodes is None else episodes.cpu().numpy()
    _, position, counts = np.unique(column, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        first = np.zeros(n, dtype=bool)
        first[rng.permutation(n)[: n // 2]] = True
        return torch.from_numpy(first).to(records.log_probs.device)
    in_first = np.zeros(len(counts), dtype=bool)
    sizes, lengths = [0, 0], counts.tolist()
    for episode in rng.permutation(len(counts)).tolist():
        half = int(sizes[1] < sizes[0])
        in_first[episode] = half == 0
        sizes[half] += lengths[episode]
    return torch.from_numpy(in_first[position]).to(records.log_probs.device)
