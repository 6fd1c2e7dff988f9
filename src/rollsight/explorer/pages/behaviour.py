"""How one behaviour formed: the probability of an action in a state over the rounds, and the records that taught it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import dash_mantine_components as dmc
import numpy as np
from dash import Dash, Input, Output, State, html
from dash.exceptions import PreventUpdate

from rollsight import runs
from rollsight.explorer import components, record_jobs
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.figures.behaviour import formation
from rollsight.explorer.jobs import Jobs, Report
from rollsight.explorer.tables import column
from rollsight.explorer.theme import number

_jobs = Jobs()


def layout(context: Context, address: Address) -> Any:
    """The behaviour of `?record=ROUND:ENV:STEP`: what is kept of it, or the offer to compute it."""
    path = context.reading.path(address.run)
    lead = "The probability of a record's action in its state, round by round, and the records that made it likelier."
    top = components.heading("Behaviour", lead)
    run = context.reading.run(address.run)
    if not run.snapshot_rounds:
        return [top, record_jobs.without_snapshots()]
    stored, record = run.snapshot_rounds, address.query.get("record", "")
    how_many = f"{len(stored)} of {len(run.rounds)} rounds have a snapshot: {runs.spell(stored)}."
    form = [
        dmc.Group(record_jobs.form("behaviour", stored, record), align="flex-start", gap="sm"),
        dmc.Text(how_many, size="xs", c="dimmed"),
        _kept(context, address, path),
    ]
    shown = components.empty(
        "Choose a record",
        "By its round, environment and step above, or from the page of a record: How this behaviour formed.",
    )
    if record_jobs.parsed(record):
        shown = result(context, address)
    return [
        top,
        dmc.Paper(dmc.Stack(form, gap="xs"), withBorder=True, radius="md", p="sm", mb="sm"),
        record_jobs.place("behaviour", shown, _jobs.progress(_key(path, record))),
    ]


def result(context: Context, address: Address) -> Any:
    """The kept result of the chosen record, its computation, or the offer."""
    record = address.query["record"]
    path = context.reading.path(address.run)
    kept = runs.stored_results(path, "phases").get(_detail(record))
    if kept is None:
        folder = runs.results_folder(path, "phases", _detail(record))
        command = shlex.join(["rollsight", "phases", str(path), "--record", record, "--out", str(folder)])
        what = "Scores all records of every round with a snapshot."
        progress = _jobs.progress(_key(path, record))
        return record_jobs.offer("behaviour", progress, what, "{done} of {total} rounds are scored", command)
    rounds = kept["rounds"]
    return [
        components.card(
            "Over the rounds",
            components.graph("behaviour-curves", formation(kept)),
            note=f"{kept['verdict'][:1].upper()}{kept['verdict'][1:]}. Click a round for its top records.",
        ),
        html.Div(id="behaviour-top", children=_top(context, address, rounds[-1])),
    ]


def _top(context: Context, address: Address, formed: dict[str, Any]) -> Any:
    """The records of one round that made the behaviour likelier."""
    round = int(formed["round"])
    records = context.reading.records(address.run, round)
    envs, steps = column(records, "env"), column(records, "step")
    rows = []
    for one in formed["top"]:
        place = np.flatnonzero((envs == one.get("env")) & (steps == one.get("step")))
        name = f"{one.get('env', '–')}:{one.get('step', '–')}"
        label: Any = name
        if len(place):
            label = components.link(name, Address("record", address.run, round, int(place[0])), context.prefix)
        cells = [
            label,
            number(one.get("influence")),
            components.text_of(one.get("action", "–")),
            number(one.get("advantage")),
            components.text_of(one.get("obs", "–"))[:120],
        ]
        rows.append(dmc.TableTr([dmc.TableTd(cell) for cell in cells]))
    head = dmc.TableThead(
        dmc.TableTr([dmc.TableTh(name) for name in ("Record", "Influence", "Action", "Advantage", "Observation")])
    )
    return components.card(
        f"Top records of round {round}", dmc.Table([head, dmc.TableTbody(rows)], fz="sm", verticalSpacing=4), mt="sm"
    )


def _kept(context: Context, address: Address, path: Path) -> Any:
    """Links to the behaviours that were computed before."""
    links: list[Any] = []
    for result in runs.stored_results(path, "phases").values():
        record = (result.get("explained") or {}).get("record")
        if record and record_jobs.parsed(str(record)):
            links.append(components.link(str(record), address.at(record=record), context.prefix))
    return dmc.Group([dmc.Text("Computed before:", size="xs", c="dimmed"), *links], gap="xs") if links else None


def compute(path: str, record: str, folder: str, report: Report) -> None:
    """Score the behaviour over all rounds and keep the result; for a process of its own."""
    from rollsight.analysis.phases.of_run import as_json, behaviour_of, development_of

    chosen = record_jobs.parsed(record)
    assert chosen is not None
    run = runs.open(path)
    obs, action = behaviour_of(run, *chosen)
    found = as_json(run, development_of(run, obs, action, report), record, obs, action)
    runs.keep_result(Path(folder), found)


def _detail(record: str) -> str:
    return f"record-{record.replace(':', '-')}" if record_jobs.parsed(record) else "none"


def _key(path: Path, record: str) -> str:
    return f"{path} {record}"


def register(app: Dash, context: Context) -> None:
    """Choosing shows what is kept; computing runs in a process of its own; a click on a round shows its records."""

    def key(address: Address, record: str) -> str:
        return _key(context.reading.path(address.run), record)

    def begin(address: Address, record: str) -> None:
        path = context.reading.path(address.run)
        where = runs.results_folder(path, "phases", _detail(record))
        _jobs.start(_key(path, record), compute, str(path), record, str(where))

    record_jobs.register(app, context, "behaviour", result, begin, lambda *asked: _jobs.progress(key(*asked)))

    @app.callback(
        Output("behaviour-top", "children"),
        Input("behaviour-curves", "clickData"),
        State("behaviour-round", "value"),
        State("behaviour-env", "value"),
        State("behaviour-step", "value"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def top(click: Any, round: str, env: Any, step: Any, path: str) -> Any:
        address = context.address(path, "")
        if not click or address is None:
            raise PreventUpdate
        kept = runs.stored_results(context.reading.path(address.run), "phases").get(_detail(f"{round}:{env}:{step}"))
        at = click["points"][0].get("x")
        formed = next((one for one in (kept or {}).get("rounds", []) if one["round"] == at), None)
        if formed is None:
            raise PreventUpdate
        return _top(context, address, formed)
