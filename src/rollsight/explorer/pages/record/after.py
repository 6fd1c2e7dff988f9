"""How likely each action of a round is after its update: the update is replayed from the round's snapshot, on request,
in a process of its own, and the result is kept next to the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

from rollsight import runs
from rollsight.explorer import components
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.jobs import Jobs, Report
from rollsight.explorer.pages.record.facts import chance
from rollsight.explorer.rounds import Round, round_of
from rollsight.runs import results_folder, stored_results

_TICK = 500  # milliseconds between looks at a computation
_ANALYSIS = "after_update"
_jobs = Jobs()


def layout(context: Context, address: Address, round: Round, record: int) -> Any:
    """The action's probability before and after the update, or the offer to compute it."""
    return html.Div(
        [
            dcc.Interval(id="record-tick", interval=_TICK, disabled=not _running(context, address)),
            html.Div(id="record-after", children=_shown(context, address, round, record)),
        ]
    )


def _shown(context: Context, address: Address, round: Round, record: int) -> Any:
    title = "The action after the update"
    before = chance(round, record)
    if before is None:
        return None
    run = context.reading.run(address.run)
    kept = stored_results(run.path, _ANALYSIS).get(_detail(round.number))
    if kept is not None and len(kept.get("log_prob", [])) == len(round):
        now = chance(round, record, float(kept["log_prob"][record]))
        factor = float(kept["log_prob"][record]) - float(round.column("log_prob")[record])
        facts = components.facts(
            components.fact(f"{before[0]} before", before[1]),
            components.fact("After", now[1] if now else "–"),
            components.fact(
                "Change of its logarithm", f"{factor:+.3g}".replace("-", "−"), "In nats, by the whole update."
            ),
        )
        return components.card(title, facts, note="By replaying the update from the round's snapshot.")
    if round.number not in run.snapshot_rounds:
        stored = run.snapshot_rounds
        where = f"Rounds with one: {runs.spell(stored)}." if stored else "This run has none."
        text = f"This needs the snapshot of round {round.number}, from which the update is replayed. {where}"
        return components.card(title, dmc.Text(text, size="sm", c="dimmed"))
    progress = _jobs.progress(_key(run.path, round.number))
    if progress.state == "running":
        return components.card(
            title,
            dmc.Text("Replaying the update …", size="sm", mb=6),
            dmc.Progress(value=100, animated=True, striped=True),
        )
    failed = [components.failed(progress.error)] if progress.state == "failed" else []
    return components.card(
        title,
        *failed,
        dmc.Text(
            "Loads the round's snapshot and replays its update, in a process of its own. The result is kept next to "
            "the run, for all records of the round.",
            size="sm", mb=6,
        ),
        dmc.Button("Load the snapshot and replay", id="record-replay", size="xs"),
    )  # fmt: skip


def replay(path: str, round: int, folder: str, _: Report) -> None:
    """Replay a round's update and keep the log-probability of every record's action after it; for a process of its own.

    Raises:
        RollsightError: the round has no snapshot, or it cannot be loaded here.
    """
    import torch

    from rollsight.snapshot import Snapshot

    snapshot = Snapshot.load(runs.open(path).snapshot_path(round))
    policy = snapshot.replay().policy
    with torch.no_grad():
        after = policy(snapshot.records).log_prob
    if after.dim() > 1:  # of a sequence all its tokens together
        after = (after * snapshot.records.valid).sum(1)
    runs.keep_result(Path(folder), {"round": round, "log_prob": after.double().tolist()})


def register(app: Dash, context: Context) -> None:
    """The button begins the replay; the page looks until it is over."""

    @app.callback(
        Output("record-tick", "disabled"),
        Input("record-replay", "n_clicks"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def begin(clicks: int | None, path: str) -> bool:
        address = context.address(path, "")
        if not clicks or address is None or address.round is None:
            raise PreventUpdate
        folder = context.reading.run(address.run).path
        where = results_folder(folder, _ANALYSIS, _detail(address.round))
        _jobs.start(_key(folder, address.round), replay, str(folder), address.round, str(where))
        return False

    @app.callback(
        Output("record-after", "children"),
        Output("record-tick", "disabled", allow_duplicate=True),
        Input("record-tick", "n_intervals"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )
    def look(_: int, path: str) -> Any:
        address = context.address(path, "")
        if address is None or address.round is None or address.record is None:
            raise PreventUpdate
        round = round_of(context.reading, address.run, address.round)
        return _shown(context, address, round, address.record), not _running(context, address)


def _running(context: Context, address: Address) -> bool:
    key = _key(context.reading.run(address.run).path, address.round or 0)
    return _jobs.progress(key).state == "running"


def _detail(round: int) -> str:
    return f"round-{round}"


def _key(path: Path, round: int) -> str:
    return f"{path} {round}"
