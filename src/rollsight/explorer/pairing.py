"""The same round in two runs, record by record: which belong together, and what differs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

Identity = Literal["step", "prompt", "episode"]
IDENTITIES = get_args(Identity)

Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Records of one run's round (A) with those of another's (B).

    Attributes:
        by: what makes two records the same one.
        keys: (P,) the identity of each pair.
        a, b: (P,) rows of the records.
        only_a, only_b: how many have no partner.
    """

    by: Identity
    keys: list[tuple[Any, ...]]
    a: Integers
    b: Integers
    only_a: int
    only_b: int

    def __len__(self) -> int:
        return len(self.keys)


def identities(a: pa.Table, b: pa.Table) -> list[Identity]:
    """By what records of these two rounds can be paired."""
    both = set(a.column_names) & set(b.column_names)
    found: list[Identity] = []
    if "prompt" in both:
        found.append("prompt")
    if {"env", "step"} <= both:
        found.append("step")
    if "episode_start" in both and all(table["episode_start"].null_count < len(table) for table in (a, b)):
        found.append("episode")
    return found


def paired(a: pa.Table, b: pa.Table, by: Identity) -> Pairs:
    """Pair the records of two rounds.

    by: "step": the same environment and step; "episode": the first steps of episodes that began alike; "prompt": the
    same prompt. Several of one identity are paired in the order in which they are stored.
    """
    names = {"step": ("env", "step"), "prompt": ("prompt",), "episode": ("episode_start",)}[by]
    ours, theirs = _rows(a, names), _rows(b, names)
    keys: list[tuple[Any, ...]] = []
    left: list[int] = []
    right: list[int] = []
    for key, rows in ours.items():
        partners = theirs.get(key, [])
        for one, other in zip(rows, partners, strict=False):
            keys.append(key)
            left.append(one)
            right.append(other)
    counted = [sum(map(len, found.values())) - len(keys) for found in (ours, theirs)]
    return Pairs(by, keys, np.array(left, np.int64), np.array(right, np.int64), *counted)


def differing(pairs: Pairs, a: pa.Table, b: pa.Table, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Column -> (P,) whether its values differ, for those of the columns that both rounds have. Two nulls do not."""
    found = {}
    for name in columns:
        if name not in a.column_names or name not in b.column_names:
            continue
        ours, theirs = a[name].take(pairs.a).to_pylist(), b[name].take(pairs.b).to_pylist()
        found[name] = np.array([one != other for one, other in zip(ours, theirs, strict=True)], np.bool_)
    return found


def _rows(table: pa.Table, names: Sequence[str]) -> dict[tuple[Any, ...], list[int]]:
    found: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for row, key in enumerate(zip(*(table[name].to_pylist() for name in names), strict=True)):
        if None not in key:
            found[key].append(row)
    return found
