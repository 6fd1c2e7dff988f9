"""Columns of the run folder's tables as arrays, with NaN where there is nothing, and how runs are described."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rollsight.explorer.theme import number


def column(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers as (N,) floats; NaN for null, for text, and all over where there is no such column."""
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    values = table[name]
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return np.full(len(table), np.nan)
    return np.asarray(values.cast(pa.float64()).fill_null(float("nan")).combine_chunks().to_numpy(zero_copy_only=False))


def has(table: pa.Table, name: str) -> bool:
    """Whether the table has this column with anything in it."""
    return name in table.column_names and table[name].null_count < len(table)


def row(table: pa.Table, index: int) -> dict[str, Any]:
    """One row as a dict; negative indices count from the end."""
    index = index % len(table)
    return dict(table.slice(index, 1).to_pylist()[0])


def performance(rounds: pa.Table) -> tuple[str, np.ndarray]:
    """What the run was after, over its rounds: its unit ("return" of an episode, or "reward" of a completion), (R,)."""
    if has(rounds, "return_mean") or not has(rounds, "reward_mean"):
        return "return", column(rounds, "return_mean")
    return "reward", column(rounds, "reward_mean")


def signal_of(records: pa.Table) -> tuple[str, str]:
    """What training takes from a record: its column, and what it is called."""
    return ("td_error", "TD error") if has(records, "td_error") else ("advantage", "advantage")


def task_of(metadata: Mapping[str, Any]) -> str:
    """The environment or the model; of prompts in a file, its name without the folders."""
    task = str(metadata.get("env") or metadata.get("model") or "unknown")
    return ", ".join(Path(part).name if Path(part).is_absolute() else part for part in task.split(", "))


def trained_by(metadata: Mapping[str, Any]) -> str:
    """How it was trained: the arm, or the rule that selected."""
    rule = metadata.get("arm") or metadata.get("rule") or "scored only"
    return str(rule)


def action_of(metadata: Mapping[str, Any], action: Any) -> str:
    """An action as people call it: its number with its name, where that is known."""
    from rollsight.environments.features import action_names

    if isinstance(action, int) and not isinstance(action, bool):
        names = action_names(str(metadata.get("env") or ""))
        return f"{action} · {names[action]}" if names is not None and 0 <= action < len(names) else str(action)
    if isinstance(action, list):
        shown = ", ".join(number(one) if isinstance(one, int | float) else str(one) for one in action[:8])
        return f"[{shown}{', …' if len(action) > 8 else ''}]"
    return number(action) if isinstance(action, float) else str(action)
