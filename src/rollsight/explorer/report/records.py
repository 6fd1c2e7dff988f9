"""The records at both ends of a round's scores, as tables with what the agent saw or the texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from rollsight.escaping import plain_html, visible
from rollsight.explorer.report.document import table
from rollsight.explorer.tables import column
from rollsight.explorer.theme import number
from rollsight.runs import rank_records

_EACH = 6  # records of each end
_TEXT = 1_500  # characters of a text that are shown


def record_tables(records: pa.Table, score: str, metadata: Mapping[str, Any]) -> str:
    """HTML: the records with the lowest and the highest scores."""
    scores = column(records, score)
    parts = []
    for title, style, lowest in (("Hurt most", "hurt", True), ("Helped most", "helped", False)):
        rows = rank_records(records, scores, _EACH, lowest=lowest)
        shown = _texts(rows) if "completion" in records.column_names else _steps(rows, metadata)
        parts.append(f'<h3 class="{style}">{title}</h3>{shown}')
    return "\n".join(parts)


def _texts(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            number(row["score"]),
            number(row.get("reward")),
            _kept(row),
            f"<pre>{_text(row.get('prompt'))}</pre>",
            f"<pre>{_text(row.get('completion'))}</pre>",
        ]
        for row in rows
    ]
    return table(["score", "reward", "", "prompt", "completion"], cells, (0, 1))


def _steps(rows: list[dict[str, Any]], metadata: Mapping[str, Any]) -> str:
    del metadata  # pictures of what the agent saw need the environment's name
    cells = []
    for row in rows:
        place = f"{row.get('env', '–')}:{row.get('step', '–')}"
        cells.append(
            [
                number(row["score"]),
                place,
                number(row.get("episode")),
                _value(row.get("action")),
                number(row.get("reward")),
                number(row.get("advantage")),
                _kept(row),
                _value(row.get("obs")),
            ]
        )
    return table(
        ["score", "env:step", "episode", "action", "reward", "advantage", "", "observation"], cells, (0, 2, 4, 5)
    )


def _kept(row: Mapping[str, Any]) -> str:
    return '<span class="dropped">dropped</span>' if row.get("kept") is False else ""


def _text(value: Any) -> str:
    text = "" if value is None else str(value)
    cut = f" … ({len(text):,} characters)" if len(text) > _TEXT else ""
    return plain_html(visible(text[:_TEXT], lines=True)) + cut


def _value(value: Any) -> str:
    if isinstance(value, list):
        flat = str([round(one, 3) if isinstance(one, float) else one for one in value[:8]])
        return plain_html(flat[:-1] + (", …]" if len(value) > 8 else "]"))
    return number(value) if isinstance(value, int | float) else plain_html(str(value))[:80]
