"""How likely each action of a round is after its update: the update is replayed from the round's snapshot, on request,
in a process of its own, and the result is kept next to the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dash import Dash

from rollsight import runs
from rollsight.explorer import components, record_jobs
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.jobs import Jobs, Progress, Report
from rollsight.explorer.pages.record.facts import chance
from rollsight.explorer.rounds import Round, round_of
from rollsight.runs import results_folder, stored_results

_PART = "record-after"
_TITLE = "The action after the update"
_ANALYSIS = "after_update"
_jobs = Jobs()


def layout(context: Context, address: Address, round: Round, record: int) -> Any:
    """The action's probability before and after the update, or the offer to compute it."""
    return record_jobs.place(_PART, _shown(context, address, round, record), _progress(context, address))


def _shown(context: Context, address: Address, round: Round, record: int) -> Any:
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
        return components.card(_TITLE, facts, note="By replaying the update from the round's snapshot.")
    if round.number not in run.snapshot_rounds:
        text = f"This needs the snapshot of round {round.number}, from which the update is replayed."
        return components.card(_TITLE, record_jobs.no_snapshot(text, run.snapshot_rounds))
    return record_jobs.offer(
        _PART, _progress(context, address),
        "Loads the round's snapshot and replays its update, in a process of its own, for all records of the round.",
        "Replaying the update", title=_TITLE, button="Load the snapshot and replay",
    )  # fmt: skip


def replay(path: str, round: int, folder: str, report: Report) -> None:
    """Replay a round's update and keep the log-probability of every record's action after it; for a process of its own.

    Raises:
        RollsightError: the round has no snapshot, or it cannot be loaded here.
    """
    import torch

    from rollsight.snapshot import Snapshot

    snapshot = Snapshot.load(runs.open(path).snapshot_path(round))
    report(1, 2)  # loaded
    policy = snapshot.replay().policy
    with torch.no_grad():
        after = policy(snapshot.records).log_prob
    if after.dim() > 1:  # of a sequence all its tokens together
        after = (after * snapshot.records.valid).sum(1)
    runs.keep_result(Path(folder), {"round": round, "log_prob": after.double().tolist()})


def register(app: Dash, context: Context) -> None:
    """The button begins the replay; the page looks until it is over."""

    def begin(address: Address) -> None:
        folder, round = context.reading.run(address.run).path, address.round or 0
        where = results_folder(folder, _ANALYSIS, _detail(round))
        _jobs.start(_key(folder, round), replay, str(folder), round, str(where))

    def shown(context: Context, address: Address) -> Any:
        round = round_of(context.reading, address.run, address.round or 0)
        return _shown(context, address, round, address.record or 0)

    record_jobs.register_offer(app, context, _PART, shown, begin, lambda address: _progress(context, address))


def _progress(context: Context, address: Address) -> Progress:
    return _jobs.progress(_key(context.reading.run(address.run).path, address.round or 0))


def _detail(round: int) -> str:
    return f"round-{round}"


def _key(path: Path, round: int) -> str:
    return f"{path} {round}"
