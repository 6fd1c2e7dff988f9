"""How one behaviour formed: the probability of an action in a state over the rounds, and the records that taught it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import dash_mantine_components as dmc
import numpy as np
from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.exceptions import PreventUpdate

from rollsight import runs
from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.figures.behaviour import formation
from rollsight.explorer.jobs import Jobs, Report
from rollsight.explorer.tables import column
from rollsight.explorer.theme import number

_TICK = 700  # milliseconds between looks at a computation
_jobs = Jobs()


def layout(context: Context, address: Address) -> Any:
    """The behaviour of `?record=ROUND:ENV:STEP`: what is kept of it, or the offer to compute it."""
    path = context.reading.path(address.run)
    lead = "The probability of a record's action in its state, round by round, and the records that made it likelier."
    top = components.heading("Behaviour", lead)
    run = context.reading.run(address.run)
    if not run.snapshot_rounds:
        return [
            top,
            components.empty(
                "This run has no snapshots",
                "Scoring earlier rounds needs the rounds frozen: train with snapshots of all rounds.",
                "rollsight train CartPole-v1 --snapshots all --out runs/cartpole",
            ),
        ]
    stored = run.snapshot_rounds
    chosen = _parsed(address.query.get("record", ""))
    first = chosen or (stored[-1], 0, 0)
    inputs = [
        dmc.Select(
            id="behaviour-round", label="Round", size="xs", w=110, searchable=True, value=str(first[0]),
            data=[str(one) for one in stored],
        ),
        dmc.NumberInput(id="behaviour-env", label="Environment", size="xs", w=110, min=0, value=first[1]),
        dmc.NumberInput(id="behaviour-step", label="Step", size="xs", w=110, min=0, value=first[2]),
        dmc.Button("Show", id="behaviour-show", size="xs", mt=22),
    ]  # fmt: skip
    return [
        top,
        dmc.Paper(
            dmc.Stack(
                [
                    dmc.Group(inputs, align="flex-start", gap="sm"),
                    dmc.Text(
                        f"{len(stored)} of {len(run.rounds)} rounds have a snapshot: {runs.spell(stored)}.",
                        size="xs",
                        c="dimmed",
                    ),
                    _kept(context, address, path),
                ],
                gap="xs",
            ),
            withBorder=True, radius="md", p="sm", mb="sm",
        ),
        dcc.Interval(id="behaviour-tick", interval=_TICK, disabled=True),
        html.Div(id="behaviour-result", children=result(context, address) if chosen else None),
    ]  # fmt: skip


def result(context: Context, address: Address) -> Any:
    """The kept result of the chosen record, its computation, or the offer."""
    record = address.query["record"]
    path = context.reading.path(address.run)
    kept = runs.stored_results(path, "phases").get(_detail(record))
    if kept is None:
        progress = _jobs.progress(_key(path, record))
        if progress.state == "running":
            done = 100 * progress.done / max(progress.total, 1)
            said = (
                f"Scoring round {progress.done + 1} of {progress.total}"
                if progress.total
                else "Loading the last policy"
            )
            return components.card(
                "Computing", dmc.Text(said, size="sm", mb=6), dmc.Progress(value=done, animated=True, striped=True)
            )
        folder = runs.results_folder(path, "phases", _detail(record))
        command = shlex.join(["rollsight", "phases", str(path), "--record", record, "--out", str(folder)])
        failed = [components.failed(progress.error)] if progress.state == "failed" else []
        return components.card(
            "Not computed yet",
            *failed,
            dmc.Text(
                "Scores all records of every round with a snapshot. The result is kept next to the run.",
                size="sm",
            ),
            dmc.Group(
                [
                    dmc.Button("Compute", id="behaviour-compute", size="xs"),
                    dmc.Text("or", size="sm"),
                    components.copied(command),
                ],
                mt="xs",
            ),
        )
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
        if record and _parsed(str(record)):
            links.append(components.link(str(record), address.at(record=record), context.prefix))
    return dmc.Group([dmc.Text("Computed before:", size="xs", c="dimmed"), *links], gap="xs") if links else None


def compute(path: str, record: str, folder: str, report: Report) -> None:
    """Score the behaviour over all rounds and keep the result; for a process of its own."""
    from rollsight.analysis.phases.of_run import as_json, behaviour_of, development_of

    chosen = _parsed(record)
    assert chosen is not None
    run = runs.open(path)
    obs, action = behaviour_of(run, *chosen)
    found = as_json(run, development_of(run, obs, action, report), record, obs, action)
    target = Path(folder) / "result.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    with runs.whole_file(target) as temporary:
        temporary.write_text(json.dumps(found), "utf-8")


def _parsed(record: str) -> tuple[int, int, int] | None:
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9}):(\d{1,9})", record)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _detail(record: str) -> str:
    return f"record-{record.replace(':', '-')}" if _parsed(record) else "none"


def _key(path: Path, record: str) -> str:
    return f"{path} {record}"


def register(app: Dash, context: Context) -> None:
    """Choosing shows what is kept; computing runs in a process of its own and shows how far it is."""

    @app.callback(
        Output("behaviour-result", "children"),
        Output("query", "data", allow_duplicate=True),
        Input("behaviour-show", "n_clicks"),
        State("behaviour-round", "value"),
        State("behaviour-env", "value"),
        State("behaviour-step", "value"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def show(clicks: int | None, round: str, env: Any, step: Any, path: str) -> Any:
        address = context.address(path, "")
        record = f"{round}:{env}:{step}"
        if not clicks or address is None:
            raise PreventUpdate
        if _parsed(record) is None:
            return components.failed(f"{record} names no record: choose a round, an environment and a step."), no_update
        return result(context, address.at(record=record)), components.choices(path, record=record)

    @app.callback(
        Output("behaviour-tick", "disabled"),
        Input("behaviour-compute", "n_clicks"),
        State("behaviour-round", "value"),
        State("behaviour-env", "value"),
        State("behaviour-step", "value"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def begin(clicks: int | None, round: str, env: Any, step: Any, path: str) -> Any:
        address = context.address(path, "")
        record = f"{round}:{env}:{step}"
        if not clicks or address is None or _parsed(record) is None:
            raise PreventUpdate
        folder = context.reading.path(address.run)
        where = runs.results_folder(folder, "phases", _detail(record))
        _jobs.start(_key(folder, record), compute, str(folder), record, str(where))
        return False

    @app.callback(
        Output("behaviour-result", "children", allow_duplicate=True),
        Output("behaviour-tick", "disabled", allow_duplicate=True),
        Input("behaviour-tick", "n_intervals"),
        State("behaviour-round", "value"),
        State("behaviour-env", "value"),
        State("behaviour-step", "value"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def tick(_: int, round: str, env: Any, step: Any, path: str) -> Any:
        address = context.address(path, "")
        record = f"{round}:{env}:{step}"
        if address is None or _parsed(record) is None:
            raise PreventUpdate
        running = _jobs.progress(_key(context.reading.path(address.run), record)).state == "running"
        return result(context, address.at(record=record)), not running

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
