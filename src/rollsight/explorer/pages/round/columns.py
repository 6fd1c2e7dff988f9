"""The columns of the table of records: which are shown, how they filter, how a value is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rollsight.explorer import components
from rollsight.explorer.filtering import PHASE, RECORD, SEARCH, STATUS, Kind, kinds
from rollsight.explorer.rounds import Round, thirds
from rollsight.runs.schema import column_of

_LONG = 300  # characters of a text in a cell
_SHOWN = (
    *(RECORD, "env", "step", "episode", "episode_step", "group", "prompt", "completion", "length", "action", "reward"),
    *("value", "advantage", "td_error", "age", "score_*", STATUS, "reason", "episode_return"),
)
_MEANING = {
    RECORD: "number of the record in the buffer of its round, from 0",
    STATUS: "kept, dropped or invalid",
    PHASE: "third of what the round holds of the record's episode",
}
_BOOLEAN = [
    "empty",
    {"displayKey": "yes", "displayName": "Yes", "numberOfInputs": 0, "predicate": {"function": "isYes"}},
    {"displayKey": "no", "displayName": "No", "numberOfInputs": 0, "predicate": {"function": "isNo"}},
    "blank",
]
_FILTERS: dict[Kind, tuple[str, dict[str, Any]]] = {
    "number": ("agNumberColumnFilter", {"inRangeInclusive": True}),
    "text": ("agTextColumnFilter", {}),
    "boolean": ("agTextColumnFilter", {"filterOptions": _BOOLEAN}),
}


def ordered(round: Round) -> list[str]:
    """All columns, those first that people look at first."""
    names = [*kinds(round.table), *(name for name in round.table.column_names if name not in kinds(round.table))]
    return sorted(names, key=_place)


def shown_of(round: Round, asked: str | None) -> list[str]:
    """The columns to show: those asked for in the address, or those that people look at first."""
    names = ordered(round)
    wanted = [name for name in (asked or "").split(",") if name in names]
    return wanted or [name for name in names if _place(name) < len(_SHOWN)]


def definitions(round: Round, shown: Sequence[str], sort: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]]:
    """The columns as AG Grid wants them."""
    known, sorted_by = kinds(round.table), {name: (i, direction) for i, (name, direction) in enumerate(sort)}
    columns = [_definition(round, name, known.get(name, "other"), name in shown) for name in ordered(round)]
    for column in columns:
        if (found := sorted_by.get(column["colId"])) is not None:
            column |= {"initialSortIndex": found[0], "initialSort": found[1]}
    search = {
        "field": SEARCH,
        "colId": SEARCH,
        "hide": True,
        "filter": "agTextColumnFilter",
        "suppressColumnsToolPanel": True,
    }
    return [*columns, search]


def _definition(round: Round, name: str, kind: Kind, shown: bool) -> dict[str, Any]:
    stored = column_of("records", name)
    meaning = _MEANING.get(name) or (f"{stored.meaning}{f' ({stored.unit})' if stored.unit else ''}" if stored else "")
    # AG Grid takes a dot in `field` for a path.
    column: dict[str, Any] = {
        "colId": name, "field": _key(name), "headerName": components.text_of(name), "headerTooltip": meaning or None,
        "hide": not shown, "sortable": kind != "other", "filter": False, "minWidth": 70, "width": 110,
    }  # fmt: skip
    if kind != "other":
        column["filter"], column["filterParams"] = _FILTERS[kind]
    if kind == "number":
        whole = name in round.table.column_names and pa.types.is_integer(round.table[name].type)
        column |= {"type": "rightAligned", "width": max(84, 50 + 8 * len(name))}
        if not whole and name != RECORD:
            shape = "params.value == null ? '–' : d3.format(',.4~g')(params.value)"
            column |= {"valueFormatter": {"function": shape}, "width": max(104, 50 + 8 * len(name))}
    elif kind == "text" and name not in (STATUS, PHASE):
        column |= {"minWidth": 220, "flex": 1, "tooltipField": _key(name)}
    elif kind == "other":
        column |= {"minWidth": 180, "flex": 1}
    if name == RECORD:
        column |= {"cellRenderer": "runLink", "pinned": "left", "width": 90}
    if name == STATUS:
        column |= {"width": 95, "cellClass": {"function": "'rs-outcome rs-' + (params.value || '')"}}
    if name.startswith("score_"):
        sign = "params.value < 0 ? 'rs-hurt' : params.value > 0 ? 'rs-helped' : ''"
        column |= {"cellClass": {"function": f"'ag-right-aligned-cell ' + ({sign})"}}
    return column


def cells(round: Round, records: np.ndarray) -> list[dict[str, Any]]:
    """The rows (n,) of the table, as JSON can hold them."""
    rows = round.table.take(pa.array(records)).to_pylist()
    phase = thirds(round)[records] if PHASE in kinds(round.table) else None
    made = []
    for place, (record, row) in enumerate(zip(records.tolist(), rows, strict=True)):
        cell = {_key(name): _cell(value) for name, value in row.items()}
        cell |= {RECORD: record, STATUS: str(round.status[record])}
        if phase is not None:
            cell[PHASE] = str(phase[place])
        made.append(cell)
    return made


def _key(name: str) -> str:
    return name.replace(".", "·")


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, list):
        short = [round(one, 4) if isinstance(one, float) else one for one in value[:12]]
        return json.dumps(short)[:-1] + (", …]" if len(value) > 12 else "]")
    if isinstance(value, str):
        return components.text_of(value if len(value) <= _LONG else value[:_LONG] + "…")
    return value


def _place(name: str) -> int:
    name = "score_*" if name.startswith("score_") else name
    return _SHOWN.index(name) if name in _SHOWN else len(_SHOWN)
