"""What a person wants to know of a run first, each in a sentence: did it learn, what hurt, what was dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rollsight.explorer.tables import column, has, performance
from rollsight.explorer.theme import number, percent

_CLEAR = 2.0  # differences of neighbouring rounds that a change must exceed to be called one


@dataclass(frozen=True)
class Group:
    """Records with something in common, and what they carry.

    Attributes:
        name: such as "environment 2".
        column, value: the column that they share, and its value.
        records: their share of the valid records.
        harm: their share of the sum of negative scores.
    """

    name: str
    column: str
    value: float
    records: float
    harm: float


def learned(rounds: pa.Table) -> str:
    """Whether what the run was after rose, in one sentence with the figures."""
    measure, values = performance(rounds)
    numbers = column(rounds, "round")
    known = np.isfinite(values)
    values, numbers = values[known], numbers[known]
    if len(values) < 2:
        return "Too few rounds to say whether it learned."
    window = max(1, len(values) // 10)
    first, last = float(values[:window].mean()), float(values[-window:].mean())
    best = int(np.argmax(values))
    noise = float(np.median(np.abs(np.diff(values)))) if len(values) > 2 else 0.0
    change = last - first
    figures = f"mean {measure} {number(first)} in the first {_rounds(window)}, {number(last)} in the last"
    peak = f"best {number(float(values[best]))} in round {int(numbers[best])}"
    if abs(change) <= _CLEAR * noise:
        return f"No clear change: {figures} (neighbouring rounds differ by {number(noise)}); {peak}."
    if change < 0:
        return f"It got worse: {figures}; {peak}."
    if float(values[best]) - last > max(0.3 * (float(values[best]) - first), _CLEAR * noise):
        return f"It learned and fell back: {figures}; {peak}."
    return f"It learned: {figures}; {peak}."


def harmful_groups(records: pa.Table, score: str, valid_only: bool = True) -> list[Group]:
    """Environments, episodes, actions and prompts by how far their share of the harm exceeds their share of records,
    the largest excess first; only groups that carry at least a twentieth of the harm."""
    scores = column(records, score)
    valid = column(records, "valid") != 0 if has(records, "valid") and valid_only else np.ones(len(scores), bool)
    use = valid & np.isfinite(scores)
    harm = np.where(use, np.maximum(-scores, 0), 0)
    total, count = harm.sum(), int(use.sum())
    if total == 0 or count == 0:
        return []
    groups = []
    completions = "completion" in records.column_names  # each is an episode of its own: no group
    for name, label in (("env", "environment"), ("episode", "episode"), ("group", "prompt"), ("action", "action")):
        keys = column(records, name)
        if (
            not np.isfinite(keys).any()
            or (completions and name == "episode")
            or (name == "action" and (keys != np.round(keys)).any())
        ):
            continue
        values = np.unique(keys[use & np.isfinite(keys)])
        if len(values) < 2 or (name == "action" and len(values) > 50):
            continue
        for value in values:
            of = keys == value
            share, part = float((of & use).sum()) / count, float(harm[of].sum() / total)
            if part >= 0.05:
                groups.append(Group(f"{label} {number(float(value))}", name, float(value), share, part))
    return sorted(groups, key=lambda group: group.harm - group.records, reverse=True)


def harm_sentence(groups: list[Group]) -> str:
    """Where the harm of a round lies, in one sentence."""
    if not groups or groups[0].harm < 1.5 * groups[0].records:
        return "The harm is spread about as the records are: no environment, episode, action or prompt stands out."
    group = groups[0]
    name = group.name[:1].upper() + group.name[1:]
    return f"{name} carries {percent(group.harm)} of the harm with {percent(group.records)} of the records."


def dropped_sentence(summary: Mapping[str, object]) -> str:
    """What a round left out."""
    dropped, valid = summary.get("dropped"), summary.get("valid")
    if not isinstance(dropped, int) or not dropped:
        return "No record was left out of the update."
    share = f" ({percent(dropped / valid)} of the valid ones)" if isinstance(valid, int) and valid else ""
    return f"{dropped:,} records{share} were left out of the update."


def _rounds(count: int) -> str:
    return "round" if count == 1 else f"{count} rounds"
