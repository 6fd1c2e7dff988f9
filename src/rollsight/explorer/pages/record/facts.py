"""A record in numbers: what was done and what came of it, and its score for each target with its rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
import numpy as np
import pyarrow as pa

from rollsight.explorer import components
from rollsight.explorer.rounds import Round
from rollsight.explorer.tables import action_of, column
from rollsight.explorer.theme import DROPPED, INVALID, number, percent
from rollsight.runs.schema import column_of

_COLOURS = {"dropped": DROPPED, "invalid": INVALID}
_NAMES = {
    "length": "Length", "reward": "Reward", "kl": "KL to the reference", "value": "Value", "advantage": "Advantage",
    "td_error": "TD error", "age": "Age",
    "return": "Return", "entropy": "Entropy", "episode_return": "Return of its episode", "reason": "Reason",
}  # fmt: skip


def facts(round: Round, record: int, metadata: Mapping[str, Any]) -> list[Any]:
    """The first line of the page."""
    row = round.table.slice(record, 1)
    status = str(round.status[record])
    parts = []
    if round.has("action"):
        parts.append(components.fact("Action", components.text_of(action_of(metadata, row["action"][0].as_py()))))
    if (before := chance(round, record)) is not None:
        name, value = before
        parts.append(components.fact(f"{name} before the update", value, "exp(log_prob), when the action was taken."))
    for column_name, label in _NAMES.items():
        if round.has(column_name):
            described = column_of("records", column_name)
            hint = f"{described.meaning}{f' ({described.unit})' if described.unit else ''}" if described else None
            value = row[column_name][0].as_py()
            shown = number(value) if isinstance(value, int | float) or value is None else str(value)
            parts.append(components.fact(label, components.text_of(shown), hint))
    return [*parts, components.fact("Status", status, "Whether it stayed in the update.", _COLOURS.get(status))]


def chance(round: Round, record: int, log_prob: float | None = None) -> tuple[str, str] | None:
    """How likely the action was: what it is called, and its value; None where it is not stored.

    log_prob: another one than the stored.
    """
    stored = log_prob if log_prob is not None else float(round.column("log_prob")[record])
    if not math.isfinite(stored) or not round.has("action"):
        return None
    kind = round.table["action"].type
    kind = kind.value_type if pa.types.is_nested(kind) else kind
    if pa.types.is_floating(kind):
        return "Density", number(math.exp(min(stored, 700.0)))
    return "Probability", percent(math.exp(stored))


def targets(round: Round, record: int) -> Any:
    """Its score for every target, and where that stands in the round."""
    if not round.targets:
        return components.card("Scores", dmc.Text("This round was not scored.", size="sm", c="dimmed"))
    valid = round.status != "invalid"
    rows = []
    for target in round.targets:
        scores = column(round.table, f"score_{target}")
        scores = np.where(valid, scores, np.nan)
        score = float(scores[record])
        finite = scores[np.isfinite(scores)]
        cells: list[Any] = [
            components.text_of(target),
            components.score(score, fw=600),
            _rank(score, finite),
        ]
        rows.append(dmc.TableTr([dmc.TableTd(cell) for cell in cells]))
    head = dmc.TableThead(dmc.TableTr([dmc.TableTh(name) for name in ("Target", "Score", "Rank in the round")]))
    return components.card(
        "Scores",
        dmc.Table([head, dmc.TableTbody(rows)], fz="sm", verticalSpacing=4),
        note="What one unit of the record's weight in the update does to the target: negative hurts it.",
    )


def _rank(score: float, finite: np.ndarray) -> str:
    if not math.isfinite(score):
        return "–"
    above, below = int((finite > score).sum()), int((finite < score).sum())
    place = f"{number(above + 1)} from the top" if above <= below else f"{number(below + 1)} from the bottom"
    return f"{place}, of {number(len(finite))}"
