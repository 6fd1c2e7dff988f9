"""The same prompt, or the searched text, in the other rounds of the run."""

from __future__ import annotations

import hashlib
from typing import Any

import dash_mantine_components as dmc
import pyarrow as pa

from rollsight import runs
from rollsight.conversations import on_one_line
from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.pages.prompts import chips
from rollsight.explorer.pages.prompts.choice import Choice
from rollsight.explorer.theme import number

_SHOWN = 200
_EXCERPT = 200


def elsewhere(context: Context, choice: Choice) -> Any:
    """Links that look through all rounds, which takes seconds in long runs, or what was found."""
    parts = []
    if choice.group is not None:
        if choice.address.query.get("over") == "prompt":
            parts.append(_same_prompt(context, choice))
        else:
            label = "Show this prompt's completions in the other rounds"
            parts.append(components.link(label, choice.at(over="prompt"), context.prefix, id="prompts-over"))
    if choice.search:
        if choice.address.query.get("over") == "search":
            parts.append(_searched(context, choice))
        else:
            label = "Search in all rounds"
            parts.append(components.link(label, choice.at(over="search"), context.prefix, id="prompts-everywhere"))
    return dmc.Stack(parts, gap="xs", mt="xs", fz="sm")


def completions_of_prompt(run: runs.Run, prompt: str) -> pa.Table:
    """The records of all rounds whose prompt is this text, in order of rounds."""
    # By its digest: no text of a record becomes part of a query.
    digest = hashlib.md5(prompt.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
    found = run.sql(f"select * from records where md5(prompt) = '{digest}' order by round, episode")
    return found.to_arrow_table()


def rounds_with(run: runs.Run, text: str) -> dict[int, int]:
    """Round -> how many of its prompts and completions have the text in them, in any case; without those that have
    none."""
    encoded = text.lower().encode("utf-8", "replace").hex()
    wanted = f"decode(from_hex('{encoded}'))"
    found = run.sql(
        f"select round, count(*) from records where contains(lower(prompt), {wanted}) "
        f"or contains(lower(completion), {wanted}) group by round order by round"
    )
    return dict(found.fetchall())


def _same_prompt(context: Context, choice: Choice) -> Any:
    assert choice.group is not None
    found = completions_of_prompt(context.reading.run(choice.address.run), choice.completions.prompt(choice.group))
    rounds = sorted(set(found["round"].to_pylist()))
    if len(rounds) < 2:
        return dmc.Text("No other round has this prompt.", c="dimmed", size="sm")
    rows = found.slice(0, _SHOWN).to_pylist()
    head = ["Round", "Score", "Reward", "Status", "Completion"]
    body = []
    for row in rows:
        said = on_one_line(row["completion"] or "")
        to = Address("record", choice.address.run, row["round"], row["episode"])
        kept = row.get("kept") is not False
        body.append(
            [
                components.link(number(row["round"]), to, context.prefix),
                chips.chip("", *chips.signed(row.get(f"score_{choice.target}"))),
                number(row.get("reward")),
                chips.chip("", "kept") if kept else chips.chip("", "dropped", chips.DROPPED),
                components.text_of(said if len(said) <= _EXCERPT else f"{said[:_EXCERPT]}…"),
            ]
        )
    table = dmc.Table(
        [
            dmc.TableThead(dmc.TableTr([dmc.TableTh(name) for name in head])),
            dmc.TableTbody([dmc.TableTr([dmc.TableTd(cell) for cell in cells]) for cells in body]),
        ],
        className="rs-over",
    )
    note = f"{number(len(found))} completions in {number(len(rounds))} rounds"
    if len(found) > _SHOWN:
        note += f", the first {_SHOWN} of them"
    return components.card("This prompt over the rounds", table, note=f"{note}.")


def _searched(context: Context, choice: Choice) -> Any:
    found = rounds_with(context.reading.run(choice.address.run), choice.search)
    if not found:
        return dmc.Text("No round has this text.", c="dimmed", size="sm")
    links = [
        components.link(
            f"{number(round)} ({number(count)})", choice.at(round=round, group=None, over=None), context.prefix
        )
        for round, count in list(found.items())[:_SHOWN]
    ]
    note = f"{number(sum(found.values()))} completions or prompts in {number(len(found))} rounds."
    return components.card("Rounds with this text", dmc.Group(links, gap="sm"), note=note)
