"""The Monte-Carlo advantage of a record next to the one it was trained with: what `rollsight diagnose` kept of the
round, or computed for this record on request, in a process of its own."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dash import Dash

from rollsight import runs
from rollsight.explorer import components, record_jobs
from rollsight.explorer.addresses import Address
from rollsight.explorer.context import Context
from rollsight.explorer.jobs import Jobs, Progress, Report
from rollsight.explorer.rounds import Round, round_of
from rollsight.explorer.theme import HELPED, HURT, number
from rollsight.runs import stored_results

_PART = "record-advantage"
_TITLE = "Monte-Carlo advantage"
_ANALYSIS = "diagnosis"
_NEEDED = ("env", "step", "episode", "episode_step", "advantage", "score_return")
_jobs = Jobs()


def layout(context: Context, address: Address, round: Round, record: int) -> Any:
    """The advantage by branched episodes and whether the sign agrees; nothing where there are no environments."""
    return record_jobs.place(_PART, _shown(context, address, round, record), _progress(context, address))


def _shown(context: Context, address: Address, round: Round, record: int) -> Any:
    if not round.has(*_NEEDED):
        return None
    run = context.reading.run(address.run)
    if (found := kept(run.path, round, record)) is not None:
        return _card(*found)
    if round.number not in run.snapshot_rounds:
        text = f"This needs the snapshot of round {round.number}, whose policy plays on from the record's state."
        return components.card(_TITLE, record_jobs.no_snapshot(text, run.snapshot_rounds))
    return record_jobs.offer(
        _PART, _progress(context, address),
        "Loads the round's snapshot, puts real environments into the record's state and plays on: 100 episodes with "
        "its action and 100 with sampled ones. The command does so for a sample of the round's records.",
        "{done} of {total} episodes are over",
        shlex.join(["rollsight", "diagnose", str(run.path), "--round", str(round.number)]),
        title=_TITLE, button="Load the snapshot and play on",
    )  # fmt: skip


def kept(path: Path, round: Round, record: int) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """What was kept of a record, and the result that it is part of, of the most branches; None where nothing was.

    What another run of the same name left behind is no result of this one: its advantage differs.
    """
    trained = float(round.column("advantage")[record])
    found = []
    for result in stored_results(path, _ANALYSIS).values():
        for one in result.get("records", []) if result.get("round") == round.number else []:
            if one.get("row") == record and math.isclose(one.get("a_hat", math.nan), trained, rel_tol=1e-5):
                found.append((one, result))
    return max(found, key=lambda pair: pair[1].get("branches", 0), default=None)


def _card(one: Mapping[str, Any], result: Mapping[str, Any]) -> Any:
    sign, colour = {True: ("wrong", HURT), False: ("right", HELPED)}.get(one["mismatch"], ("unsure", None))
    facts = components.facts(
        components.fact("Trained with", number(one["a_hat"]), "The advantage in the buffer."),
        components.fact(
            "Monte Carlo",
            f"{number(one['a_bar'])} ± {number(one['a_bar_error'], 2)}",
            "Return after its action less the return after a sampled action, with its standard error.",
        ),
        components.fact("Sign", sign, "Unsure where the advantage is within two standard errors of 0.", colour),
        components.fact("Return after its action", number(one["q_bar"])),
        components.fact("After a sampled action", number(one["v_bar"])),
    )
    note = f"{number(result['branches'])} episodes each, discounted; {result['how']}."
    said = [f"{text[:1].upper()}{text[1:]}." for text in result.get("notes", [])]
    return components.card(_TITLE, facts, note=components.text_of(" ".join([note, *said])))


def compute(path: str, round: int, record: int, report: Report) -> None:
    """Branch one record and keep the result; for a process of its own.

    Raises:
        RollsightError: the round has no snapshot or no scores, or its environment cannot be branched.
    """
    from rollsight.analysis.diagnosis.record import diagnose_record, keep_record
    from rollsight.analysis.diagnosis.round_data import RoundData

    run = runs.open(path)
    keep_record(run.path, diagnose_record(RoundData(run, round), record, on_ended=report))


def register(app: Dash, context: Context) -> None:
    """The button begins the episodes; the page looks until they are over."""

    def begin(address: Address) -> None:
        path, round, record = context.reading.run(address.run).path, address.round or 0, address.record or 0
        _jobs.start(_key(path, round, record), compute, str(path), round, record)

    def shown(context: Context, address: Address) -> Any:
        round = round_of(context.reading, address.run, address.round or 0)
        return _shown(context, address, round, address.record or 0)

    record_jobs.register_offer(app, context, _PART, shown, begin, lambda address: _progress(context, address))


def _progress(context: Context, address: Address) -> Progress:
    return _jobs.progress(_key(context.reading.run(address.run).path, address.round or 0, address.record or 0))


def _key(path: Path, round: int, record: int) -> str:
    return f"{path} {round} {record}"
