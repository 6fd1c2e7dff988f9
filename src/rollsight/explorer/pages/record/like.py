"""Records like one: the nearest observations with the same action and with others; of language models the other
completions of its prompt."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
import numpy as np

from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.rounds import Round
from rollsight.explorer.similar import Near, nearest
from rollsight.explorer.tables import action_of, signal_of
from rollsight.explorer.theme import number

_COMPLETIONS = 16


def layout(context: Context, address: Address, round: Round, record: int) -> Any:
    """Two tables, or one of completions."""
    if round.has("completion"):
        return _completions(context, address, round, record)
    found = nearest(round, record)
    if found is None:
        return components.card(
            "Nearest records",
            dmc.Text(
                "Records cannot be compared here: the observation of this one is not stored.",
                size="sm", c="dimmed",
            ),
        )  # fmt: skip
    same, other = found
    title = "Nearest records" if other is None else "Nearest with the same action"
    tables = [(title, same), *([("Nearest with another action", other)] if other is not None else [])]
    note = "By observation. A distance of 1 is one standard deviation of the round's observations."
    cards = [components.card(title, _table(context, address, round, near), note=note) for title, near in tables]
    return dmc.SimpleGrid(cards, cols={"base": 1, "md": len(cards)}, spacing="sm")


def _table(context: Context, address: Address, round: Round, near: Near) -> Any:
    if not len(near.records):
        return dmc.Text("There is none in this round.", size="sm", c="dimmed")
    rows, metadata = [], context.reading.metadata(address.run)
    signal, called = signal_of(round.table)
    for record, distance, opposed in zip(near.records.tolist(), near.distances, near.opposed, strict=True):
        badge = dmc.Badge("other sign", color="grape", variant="light", size="xs", radius="sm") if opposed else ""
        cells = [
            _link(context, address, round, record, number(record)),
            number(float(distance)),
            components.text_of(action_of(metadata, round.table["action"][record].as_py())),
            number(float(round.column(signal)[record])),
            components.score(float(round.scores[record])),
            dmc.Group([_status(round, record), badge], gap=6),
        ]
        rows.append(dmc.TableTr([dmc.TableTd(cell) for cell in cells]))
    names = ("Record", "Distance", "Action", called[0].upper() + called[1:], "Score", "Status")
    head = dmc.TableThead(dmc.TableTr([dmc.TableTh(name) for name in names]))
    return dmc.Table([head, dmc.TableTbody(rows)], fz="sm", verticalSpacing=3, highlightOnHover=True)


def _completions(context: Context, address: Address, round: Round, record: int) -> Any:
    """The other completions of the record's prompt in the round, the highest score first."""
    if round.has("group"):
        key = round.column("group")
    else:
        prompts = round.table["prompt"].to_pylist() if round.has("prompt") else [None] * len(round)
        key = np.unique([prompt or "" for prompt in prompts], return_inverse=True)[1]
    others = np.flatnonzero(key == key[record])
    others = others[others != record]
    others = others[np.argsort(-np.nan_to_num(round.scores[others]), kind="stable")]
    if not len(others):
        text = "This round holds no other completion of the prompt."
        return components.card("The same prompt", dmc.Text(text, size="sm", c="dimmed"))
    rows = []
    for other in others[:_COMPLETIONS].tolist():
        text = str(round.table["completion"][other].as_py() or "(empty)")
        cells = [
            _link(context, address, round, other, number(other)),
            components.text_of(text[:160] + ("…" if len(text) > 160 else "")),
            number(float(round.column("reward")[other])),
            components.score(float(round.scores[other])),
            _status(round, other),
        ]
        rows.append(dmc.TableTr([dmc.TableTd(cell) for cell in cells]))
    head = dmc.TableThead(
        dmc.TableTr([dmc.TableTh(name) for name in ("Record", "Completion", "Reward", "Score", "Status")])
    )
    note = f"{number(len(others))} other completions" + (
        f", {_COMPLETIONS} shown" if len(others) > _COMPLETIONS else ""
    )
    return components.card(
        "The same prompt", dmc.Table([head, dmc.TableTbody(rows)], fz="sm", verticalSpacing=3), note=note
    )


def _link(context: Context, address: Address, round: Round, record: int, label: str) -> Any:
    return components.link(label, Address("record", address.run, round.number, record, address.query), context.prefix)


def _status(round: Round, record: int) -> Any:
    status = str(round.status[record])
    return dmc.Text(status, size="sm", className=f"rs-outcome rs-{status}")
