"""Two runs side by side: the same round, record by record, with what differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dash_ag_grid as dag
import dash_mantine_components as dmc
import numpy as np
import pyarrow as pa
from dash import html

from rollsight.conversations import on_one_line
from rollsight.errors import RollsightError
from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.pairing import IDENTITIES, Identity, Pairs, differing, identities, paired
from rollsight.explorer.tables import column
from rollsight.explorer.theme import number
from rollsight.explorer.trust import trust_of

SHOWN = 300  # pairs in the table
_CONVERSATION = 20_000  # characters, beyond which a text is cut before it is looked at
_EXCERPT = 400  # characters of a text in the table
_COMPARED = ("action", "completion", "reward", "episode_return", "kept", "obs")
_LABELS = {"step": "Environment and step", "prompt": "Prompt", "episode": "Beginning of the episode"}


@dataclass(frozen=True)
class Sides:
    """What stands side by side.

    Attributes:
        a, b: names of the two runs.
        round: of both.
        by: what makes two records the same one; None for the first that is possible.
        only: whether pairs without a difference are left out.
    """

    a: str
    b: str
    round: int
    by: Identity | None
    only: bool


def pair_of(context: Context, address: Address, names: list[str]) -> Sides:
    """What an address chooses (`?a=&b=&round=&by=&only=changed`) of these runs, at least two."""
    query = address.query
    a = query["a"] if query.get("a") in names else names[0]
    b = query["b"] if query.get("b") in names and query["b"] != a else _partner(context, a, names)
    asked = query.get("round", "")
    common = set(context.reading.round_numbers(a)) & set(context.reading.round_numbers(b))
    round = int(asked) if asked.isdecimal() else max(common, default=1)
    by = next((one for one in IDENTITIES if one == query.get("by")), None)
    return Sides(a, b, round, by, query.get("only") == "changed")


def sides(context: Context, address: Address, names: list[str]) -> Any:
    """The card with the choices and the table."""
    pair = pair_of(context, address, names)
    possible = _possible(context, pair)
    by = pair.by if pair.by in possible else next(iter(possible), None)
    controls = dmc.Group(
        [
            _select("a", "Run A", names, pair.a, 220),
            _select("b", "Run B", names, pair.b, 220),
            _select("round", "Round", rounds_of(context, names, pair.round), str(pair.round), 96),
            _select("by", "The same", [{"value": one, "label": _LABELS[one]} for one in possible], by, 200),
            dmc.Checkbox(id="compare-only", label="Only what differs", checked=pair.only, size="xs", mb=6),
        ],
        gap="sm", mb="sm", align="flex-end",
    )  # fmt: skip
    return components.card(
        "Side by side", controls, html.Div(found(context, pair), id="compare-found"),
        note="The same prompt, step or beginning of an episode in both runs, the largest difference in score first.",
    )  # fmt: skip


def rounds_of(context: Context, names: list[str], chosen: int) -> list[str]:
    """The rounds of any of the runs, and the chosen one, the last first."""
    rounds = {number for name in names for number in context.reading.round_numbers(name)} | {chosen}
    return [str(one) for one in sorted(rounds, reverse=True)]


def found(context: Context, pair: Sides) -> Any:
    """The pairs of a round, or why there are none."""
    try:
        tables = context.reading.records(pair.a, pair.round), context.reading.records(pair.b, pair.round)
    except RollsightError as error:
        return components.failed(str(error))
    possible = identities(*tables)
    if not possible:
        return components.empty(
            "Nothing can be paired", "One run holds steps and the other completions: choose others."
        )
    by = pair.by if pair.by in possible else possible[0]
    return _pairs(context, paired(*tables, by), tables, pair)


def _partner(context: Context, a: str, names: list[str]) -> str:
    """The first other run with the same seed, as another arm of a study is; the first other one where none has it."""
    others = [name for name in names if name != a]
    seed = context.reading.metadata(a).get("seed")
    return next((name for name in others if context.reading.metadata(name).get("seed") == seed), others[0])


def _possible(context: Context, pair: Sides) -> list[Identity]:
    try:
        return identities(context.reading.records(pair.a, pair.round), context.reading.records(pair.b, pair.round))
    except RollsightError:  # `found` says what is wrong
        return []


def _pairs(context: Context, pairs: Pairs, tables: tuple[pa.Table, pa.Table], pair: Sides) -> Any:
    if not len(pairs):
        what = "None of this round's records is in both: choose another round, or runs of the same seed."
        return components.empty("No pair", what)
    changes = differing(pairs, *tables, _COMPARED)
    scores = [_score(context, *one) for one in zip((pair.a, pair.b), (pair.round,) * 2, tables, strict=True)]
    gap = scores[1][pairs.b] - scores[0][pairs.a]
    any_change = np.any(list(changes.values()), axis=0) if changes else np.zeros(len(pairs), np.bool_)
    chosen = np.flatnonzero(any_change) if pair.only else np.arange(len(pairs))
    chosen = chosen[np.argsort(-np.nan_to_num(np.abs(gap[chosen]), nan=-1.0), kind="stable")]
    shares = [f"{_plain(name)} in {number(int(mask.sum()))}" for name, mask in changes.items() if mask.any()]
    said = f"{number(len(pairs))} pairs; different: {', '.join(shares) if shares else 'nothing'}."
    if pairs.only_a or pairs.only_b:
        said += f" Without a partner: {number(pairs.only_a)} of A, {number(pairs.only_b)} of B."
    if len(chosen) > SHOWN:
        said += f" Shown: {SHOWN} of {number(len(chosen))}."
    rows = []
    for i in chosen[:SHOWN].tolist():
        to = context.href(Address("record", pair.a, pair.round, int(pairs.a[i])))
        rows.append({"id": str(i), "href": to, **_row(pairs, i, tables, scores, changes)})
    return dmc.Stack([*_trust(context, pair), dmc.Text(said, size="xs", c="dimmed"), _grid(rows, pairs.by)], gap=6)


def _trust(context: Context, pair: Sides) -> list[Any]:
    """Whether the scores of either side can be believed."""
    lines = [(side, trust_of(context.summary(name, pair.round))) for side, name in (("A", pair.a), ("B", pair.b))]
    return [
        dmc.Group(
            [dmc.Text(side, fw=600, size="sm"), components.trust_line(trust)], gap="xs", align="baseline", wrap="nowrap"
        )
        for side, trust in lines
    ]  # fmt: skip


def _row(
    pairs: Pairs,
    i: int,
    tables: tuple[pa.Table, pa.Table],
    scores: list[np.ndarray],
    changes: dict[str, np.ndarray],
) -> dict[str, Any]:
    places = (int(pairs.a[i]), int(pairs.b[i]))
    row: dict[str, Any] = {
        "name": _identity(pairs.by, pairs.keys[i]),
        "changed": ", ".join(_plain(name) for name, mask in changes.items() if mask[i]) or "nothing",
    }
    for side, table, place, score in zip("ab", tables, places, scores, strict=True):
        row[f"score_{side}"] = _finite(score[place])
        for name in ("action", "completion", "reward", "episode_return"):
            if name in table.column_names:
                row[f"{name}_{side}"] = _shown(table[name][place].as_py())
    one, other = row["score_a"], row["score_b"]
    row["gap"] = None if one is None or other is None else other - one
    return row


def _grid(rows: list[dict[str, Any]], by: Identity) -> Any:
    numbers = {"valueFormatter": {"function": "params.value == null ? '–' : d3.format('.4~g')(params.value)"}}
    said = {"wrapText": True, "autoHeight": True, "cellClass": "rs-pair-text"}
    texts = by == "prompt"
    first = {"field": "name", "headerName": _LABELS[by], "cellRenderer": "runLink", "pinned": None if texts else "left"}
    columns: list[dict[str, Any]] = [{**first, **({"flex": 2, "minWidth": 180, **said} if texts else {"width": 180})}]
    columns.append({"field": "changed", "headerName": "What differs", "flex": 1, "minWidth": 190})
    present = {name for row in rows for name in row}
    for name, label in (
        ("completion", "Completion"), ("action", "Action"), ("reward", "Reward"), ("episode_return", "Return"),
        ("score", "Score"),
    ):  # fmt: skip
        for side in "ab":
            if f"{name}_{side}" in present and not (name == "episode_return" and by != "episode"):
                style = {"flex": 3, "minWidth": 200, **said} if name == "completion" else {"width": 118, **numbers}
                if name == "action":
                    style = {"width": 118}
                columns.append({"field": f"{name}_{side}", "headerName": f"{label} {side.upper()}", **style})
    columns.append({"field": "gap", "headerName": "Score, B − A", "width": 136, **numbers})
    return dag.AgGrid(
        id="compare-pairs",
        rowData=rows,
        columnDefs=columns,
        defaultColDef={"sortable": True, "filter": True, "resizable": True},
        dashGridOptions=components.GRID_OPTIONS,
        getRowId="params.data.id",
        style={"height": "480px"},
        className="ag-theme-quartz rs-grid",
    )


def _select(name: str, label: str, data: Any, value: str | None, width: int) -> Any:
    return dmc.Select(
        id=f"compare-{name}", label=label, data=data, value=value, size="xs", w=width, allowDeselect=False,
        searchable=name in ("a", "b", "round"),
    )  # fmt: skip


def _score(context: Context, name: str, round: int, table: pa.Table) -> np.ndarray:
    targets = context.reading.targets(name, round)
    decisive = str(context.summary(name, round).get("target") or "")
    return column(table, f"score_{decisive if decisive in targets else next(iter(targets), '')}")


def _identity(by: Identity, key: tuple[Any, ...]) -> str:
    if by == "step":
        return f"env {key[0]}, step {key[1]}"
    return _cut(str(key[0]))


def _shown(value: Any) -> Any:
    if isinstance(value, float):
        return _finite(value)
    if isinstance(value, int):
        return value
    if isinstance(value, list):
        return ", ".join(number(one) if isinstance(one, float | int) else str(one) for one in value[:8])
    return None if value is None else _cut(str(value))


def _cut(text: str) -> str:
    """The beginning of a text, on one line."""
    line = on_one_line(text if len(text) < _CONVERSATION else text[: 2 * _EXCERPT])
    return str(components.text_of(line if len(line) <= _EXCERPT else f"{line[:_EXCERPT]}…"))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _plain(name: str) -> str:
    return {"obs": "observation", "episode_return": "return"}.get(name, name)
