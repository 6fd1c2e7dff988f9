"""The records at both ends of a round's scores, as tables with what the agent saw or the texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from rollsight.errors import RollsightError
from rollsight.escaping import plain_html, visible
from rollsight.explorer.report.document import picture, table
from rollsight.explorer.tables import column
from rollsight.explorer.theme import number
from rollsight.playing.pictures import Pictures, as_png
from rollsight.runs import Run, rank_records

_EACH = 6  # records of each end
_TEXT = 1_500  # characters of a text that are shown


def record_tables(run: Run, round: int, records: pa.Table, score: str) -> str:
    """HTML: the records with the lowest and the highest scores."""
    scores = column(records, score)
    pictures = Pictures(run)
    records = records.append_column("record", pa.array(range(len(records))))
    parts = []
    for title, style, lowest in (("Hurt most", "hurt", True), ("Helped most", "helped", False)):
        rows = rank_records(records, scores, _EACH, lowest=lowest)
        shown = _texts(rows) if "completion" in records.column_names else _steps(rows, pictures, round)
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


def _steps(rows: list[dict[str, Any]], pictures: Pictures, round: int) -> str:
    headings = ["", "score", "env:step", "episode", "action", "reward", "advantage", "", "observation"]
    cells = []
    for row in rows:
        cells.append(
            [
                _picture(pictures, round, row["record"]),
                number(row["score"]),
                f"{row.get('env', '–')}:{row.get('step', '–')}",
                number(row.get("episode")),
                _value(row.get("action")),
                number(row.get("reward")),
                number(row.get("advantage")),
                _kept(row),
                _value(row.get("obs")),
            ]
        )
    return table(headings, cells, (1, 3, 5, 6))


def _picture(pictures: Pictures, round: int, record: int) -> str:
    """What the agent saw, where its observation says all of it: nothing is played again for a report."""
    try:
        image = pictures.observed(round, record)
    except RollsightError:
        return ""
    return "" if image is None else picture(as_png(image, 96), f"record {record}", 120)


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
