"""Which rollouts taught a behaviour: its course, the groups and records with the most influence, and the verdict."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State
from dash.exceptions import PreventUpdate

from rollsight import runs
from rollsight.explorer import components, record_jobs
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.figures.culprits import influence, shares
from rollsight.explorer.jobs import Jobs, Report
from rollsight.explorer.theme import number, percent

_COLOURS = {"confirmed": "teal", "opposite": "red", "not confirmed": "gray"}
_QUERY = "select round, env, step from records where action = 1"
_TEXTS = "select round, episode from records where contains(completion, '!')"
_TRAINING = "rollsight rlhf --snapshots all --out runs/detox"
_jobs = Jobs()


def command(path: Path, language: bool) -> str:
    """An example of how the culprits of any selection of records are computed."""
    return shlex.join(["rollsight", "culprits", str(path), "--behaviour", _TEXTS if language else _QUERY])


def layout(context: Context, address: Address) -> Any:
    """What is kept of the behaviour `?behaviour=KEY`, or the behaviour of the record `?record=ROUND:ENV:STEP`; without
    either, the first that is kept."""
    lead = "Which records, episodes and environments taught a behaviour, and whether replays without them agree."
    top = components.heading("Culprits", lead)
    run = context.reading.run(address.run)
    language = runs.is_language(run.metadata)
    if language and not run.policy_rounds:
        what = "Scoring earlier rounds needs them frozen: train with snapshots of all rounds."
        return [top, components.empty("This run has no frozen rounds", what, _TRAINING)]
    if not language and not run.snapshot_rounds:
        return [top, record_jobs.without_snapshots()]
    record, kept = address.query.get("record", ""), runs.stored_results(run.path, "culprits")
    computed = dmc.Select(
        id="culprits-kept", label="Computed before", size="xs", w=420, searchable=True,
        value=_chosen(address, kept), disabled=not kept,
        placeholder="Choose a behaviour" if kept else "None yet",
        data=[{"value": key, "label": components.text_of(one.get("behaviour", key))} for key, one in kept.items()],
    )  # fmt: skip
    fields = [] if language else record_jobs.form("culprits", run.snapshot_rounds, record)
    form = dmc.Group([computed, *fields], align="flex-start", gap="sm")
    return [
        top,
        dmc.Paper(form, withBorder=True, radius="md", p="sm", mb="sm"),
        record_jobs.place("culprits", result(context, address), _jobs.progress(_key(run.path, record))),
    ]


def result(context: Context, address: Address) -> Any:
    """The kept result, the computation of a record's behaviour, or the offer."""
    run = context.reading.run(address.run)
    path, kept = run.path, runs.stored_results(run.path, "culprits")
    record = address.query.get("record", "")
    language = runs.is_language(run.metadata)
    if (chosen := _chosen(address, kept)) is not None:
        return [
            *_shown(context, address, kept[chosen]),
            dmc.Space(h="sm"),
            components.card(
                "Of another behaviour", components.copied(command(path, language)), note="Any selection of records."
            ),
        ]
    if language or record_jobs.parsed(record) is None:
        what = "One computed before" if language else "A record above"
        said = f"{what}, or any selection of records by this command."
        return components.empty("Choose a behaviour", said, command(path, language))
    found = next((one for one in kept.values() if one.get("found") == 1 and _record_of(one) == record), None)
    if found is not None:
        return _shown(context, address, found)
    of_record = shlex.join(["rollsight", "culprits", str(path), "--record", record])
    what = "Scores all records of every round with a snapshot, and replays some without the culprits."
    doing = "{done} of {total} steps are done: rounds are scored, then replayed"
    return record_jobs.offer("culprits", _jobs.progress(_key(path, record)), what, doing, of_record)


def _chosen(address: Address, kept: Mapping[str, Any]) -> str | None:
    """The kept behaviour to show; None where a record's is asked for, or none is kept."""
    key = address.query.get("behaviour")
    return key if key in kept else None if address.query.get("record") else next(iter(kept), None)


def _shown(context: Context, address: Address, kept: Mapping[str, Any]) -> Any:
    check = kept.get("check")
    drawn = f", {number(kept['pairs'])} of them drawn" if kept["pairs"] < kept["found"] else ""
    verdict: list[Any] = [dmc.Text(components.text_of(kept["note"] or "Not checked by replays."), size="sm")]
    if check:
        sentence = check["verdict"].removeprefix(f"{check['outcome']}: ")
        badge = dmc.Badge(
            check["outcome"], color=_COLOURS.get(check["outcome"], "gray"), variant="light", style={"flexShrink": 0}
        )
        verdict = [
            dmc.Group(
                [badge, dmc.Text(components.text_of(f"{sentence[:1].upper()}{sentence[1:]}."), size="sm")],
                gap="xs", wrap="nowrap", align="flex-start",
            ),
            dmc.Text("Drop mode: repack. Counterfactual: replay.", size="xs", c="dimmed", mt=4),
        ]  # fmt: skip
    groups = [
        components.card(
            f"By {components.text_of(name)}",
            components.graph(f"culprits-by-{place}", shares(name, found)),
            note="A group whose share of the influence is larger than its share of the records taught more than its "
            "size.",
        )
        for place, (name, found) in enumerate(kept["groups"].items())
        if found
    ]
    return [
        components.card(
            components.text_of(kept["behaviour"]),
            *verdict,
            note=f"{number(kept['found'])} {noun(kept)}{'s' * (kept['found'] > 1)}{drawn}.",
        ),
        components.card(
            "When it was learnt",
            components.graph("culprits-rounds", influence(kept)),
            note="Sums of scores of the records that were trained on, in nats per unit of a record's weight.",
            mt="sm",
        ),
        dmc.SimpleGrid(groups, cols={"base": 1, "md": 2}, spacing="sm", mt="sm"),
        _records(context, address, kept["records"]),
    ]


def noun(kept: Mapping[str, Any]) -> str:
    """What the behaviour consists of."""
    return "completion" if any("completion" in one for one in kept["records"]) else "record"


def name_of(record: Mapping[str, Any]) -> str:
    """A top record's name."""
    if "completion" in record:
        return f"{record['round']}:{record['episode']}"
    return f"{record['round']}:{record.get('env', '–')}:{record.get('step', '–')}"


def _records(context: Context, address: Address, records: list[dict[str, Any]]) -> Any:
    texts = any("completion" in one for one in records)
    rows = []
    for one in records:
        to = Address("record", address.run, int(one["round"]), int(one["row"]))
        shown = [one.get("prompt"), one.get("completion")] if texts else [one.get("action", "–")]
        cells = [
            components.link(name_of(one), to, context.prefix),
            components.score(one["influence"]),
            percent(one["share"]),
            number(one.get("reward")),
            number(one.get("advantage")),
            *map(components.text_of, shown),
        ]
        rows.append(dmc.TableTr([dmc.TableTd(cell) for cell in cells]))
    names = ["Record", "Influence", "Share of positive", "Reward", "Advantage"]
    names += ["Prompt", "Completion"] if texts else ["Action"]
    head = dmc.TableThead(dmc.TableTr([dmc.TableTh(name) for name in names]))
    return components.card("Top records", dmc.Table([head, dmc.TableTbody(rows)], fz="sm", verticalSpacing=4), mt="sm")


def compute(path: str, record: str, report: Report) -> None:
    """Score, gather and check the behaviour of one record and keep the result; for a process of its own."""
    from rollsight.analysis.culprits import culprits_of, of_records

    chosen = record_jobs.parsed(record)
    assert chosen is not None
    run = runs.open(path)
    culprits_of(run, of_records(run, {chosen[0]: [chosen[1:]]}), report=report)


def _record_of(kept: Mapping[str, Any]) -> str:
    return str((kept.get("records_of_behaviour") or [""])[0])


def _key(path: Path, record: str) -> str:
    return f"{path} {record}"


def register(app: Dash, context: Context) -> None:
    """Choosing shows what is kept; computing runs in a process of its own and shows how far it is."""

    def key(address: Address, record: str) -> str:
        return _key(context.reading.run(address.run).path, record)

    def begin(address: Address, record: str) -> None:
        path = context.reading.run(address.run).path
        _jobs.start(_key(path, record), compute, str(path), record)

    record_jobs.register(app, context, "culprits", result, begin, lambda *asked: _jobs.progress(key(*asked)))

    @app.callback(
        Output("culprits-result", "children", allow_duplicate=True),
        Output("query", "data", allow_duplicate=True),
        Input("culprits-kept", "value"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def pick(key: str | None, path: str) -> Any:
        address = context.address(path, "")
        if not key or address is None:
            raise PreventUpdate
        return result(context, address.at(behaviour=key)), components.choices(path, behaviour=key)
