"""The records at both ends of a round's scores, as tables with what the agent saw or the texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from rollsight.errors import RollsightError
from rollsight.escaping import plain_html, visible
from rollsight.explorer.report.document import picture, table
from rollsight.explorer.tables import action_of, column, signal_of
from rollsight.explorer.theme import number
from rollsight.playing.pictures import Pictures, as_png
from rollsight.runs import Run, rank_records

_EACH = 6  # records of each end
_TEXT = 1_500  # characters of a text that are shown
_EXCERPT = 160  # characters of one at the top


def worst_records(run: Run, round: int, records: pa.Table, score: str, metadata: Mapping[str, Any]) -> str:
    """HTML: the records with the lowest negative scores, small, side by side; nothing where none is negative."""
    rows = [row for row in _ranked(records, score, lowest=True) if row["score"] < 0]
    if not rows:
        return ""
    pictures, (signal, called) = Pictures(run), signal_of(records)
    cells = []
    for row in rows:
        about = [f"score {number(row['score'])}"]
        if "completion" in records.column_names:
            text = " ".join(str(row.get("completion") or "(empty)").split())
            body = (
                f"<blockquote>{plain_html(visible(text[:_EXCERPT]))}{'…' if len(text) > _EXCERPT else ''}</blockquote>"
            )
            about.append(f"reward {number(row.get('reward'))}")
        else:
            body = _picture(pictures, round, row["record"])
            about = [
                plain_html(action_of(metadata, row.get("action"))),
                *about,
                f"{called} {number(row.get(signal))}",
            ]
        cells.append(f"<figure>{body}<figcaption>{'<br>'.join(about)}</figcaption></figure>")
    kind = "completions" if "completion" in records.column_names else "records"
    return f'<h3 class="hurt">The {kind} of round {round} that hurt most</h3><div class="strip">{"".join(cells)}</div>'


def record_tables(run: Run, round: int, records: pa.Table, score: str, metadata: Mapping[str, Any]) -> str:
    """HTML: the records with the lowest and the highest scores."""
    pictures, signal = Pictures(run), signal_of(records)
    parts = []
    for title, style, lowest in (("Hurt most", "hurt", True), ("Helped most", "helped", False)):
        rows = _ranked(records, score, lowest=lowest)
        shown = (
            _texts(rows) if "completion" in records.column_names else _steps(rows, pictures, round, metadata, signal)
        )
        parts.append(f'<h3 class="{style}">{title}</h3>{shown}')
    return "\n".join(parts)


def _ranked(records: pa.Table, score: str, *, lowest: bool) -> list[dict[str, Any]]:
    """The rows of one end, with their place in the round as `record`."""
    numbered = records.append_column("record", pa.array(range(len(records))))
    return rank_records(numbered, column(records, score), _EACH, lowest=lowest)


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


def _steps(
    rows: list[dict[str, Any]], pictures: Pictures, round: int, metadata: Mapping[str, Any], signal: tuple[str, str]
) -> str:
    headings = ["", "score", "env:step", "episode", "action", "reward", signal[1], "", "observation"]
    cells = []
    for row in rows:
        cells.append(
            [
                _picture(pictures, round, row["record"]),
                number(row["score"]),
                f"{row.get('env', '–')}:{row.get('step', '–')}",
                number(row.get("episode")),
                plain_html(action_of(metadata, row.get("action"))),
                number(row.get("reward")),
                number(row.get(signal[0])),
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
