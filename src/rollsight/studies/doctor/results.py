"""How often the doctor is right: tables from what the checks measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollsight.doctor.check import Check
from rollsight.doctor.examination import CHECKS
from rollsight.doctor.finding import SEVERITIES
from rollsight.studies.doctor import language
from rollsight.studies.doctor.faults import FAULTS, FITTED, ODD, UNDONE
from rollsight.studies.doctor.measured import right_checks
from rollsight.studies.markdown import table

Rows = Sequence[Mapping[str, Any]]
_BY_NAME = {check.name: check for check in CHECKS}
_SET_ON = (*FITTED, language.FITTED)
_ORDER = {check.name: place for place, check in enumerate(CHECKS)}


@dataclass(frozen=True)
class Told:
    """What the doctor says of one run.

    env: name of the environment.
    fault: name of the planted one, None for a healthy run.
    strength: of the fault.
    findings: (check, severity), first shown first.
    after: rounds until the right check spoke, None where it did not.
    place: whether it pointed to the right place; None where there is none.
    """

    env: str
    fault: str | None
    strength: float
    findings: tuple[tuple[str, str], ...]
    after: int | None = None
    place: bool | None = None

    @property
    def right(self) -> tuple[str, ...]:
        """Checks that name the cause."""
        return right_checks(self.fault)

    @property
    def found(self) -> bool:
        """Whether one of them spoke."""
        return any(name in self.right for name, _ in self.findings)

    @property
    def first(self) -> bool:
        """Whether one of them is what is shown first."""
        return bool(self.findings) and self.findings[0][0] in self.right


def told(rows: Rows, among: Callable[[Check], bool] = lambda check: True) -> list[Told]:
    """What is said of every run, by the checks `among` all."""
    by_run: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_run.setdefault(row["run"], []).append(row)
    return [_told(mine, among) for mine in by_run.values()]


def _told(rows: Rows, among: Callable[[Check], bool]) -> Told:
    about = rows[0]
    spoken = [
        (row, severity)
        for row in rows
        if row["check"] in _BY_NAME and among(_BY_NAME[row["check"]])
        if (severity := _BY_NAME[row["check"]].severity(row["value"])) is not None
    ]
    last = sorted(
        ((row["check"], severity) for row, severity in spoken if row["last"]),
        key=lambda one: (SEVERITIES.index(one[1]), _ORDER[one[0]]),
    )
    right = [row for row, _ in spoken if row["check"] in right_checks(about["fault"])]
    at_end = [row for row in right if row["last"]]
    place = None
    if at_end and about["fault"] in FAULTS:
        place = _points_there(about["fault"], about["strength"], at_end[0])
    return Told(about["env"], about["fault"], about["strength"], tuple(last),
                min((row["rounds"] for row in right), default=None), place)  # fmt: skip


def _points_there(fault: str, strength: float, row: Mapping[str, Any]) -> bool | None:
    match FAULTS[fault].place:
        case "environment" if fault == "copies":
            return 0 in row["environments"]
        case "environment":
            return bool(row["environments"] == [ODD])
        case "feature":
            return bool(row["features"] == [0])
        case "round":
            return UNDONE in row["at_rounds"] or UNDONE + 1 in row["at_rounds"]
    return None


def by_fault(runs: Sequence[Told]) -> list[list[str]]:
    """A row for each fault and strength: runs, share found, share shown first, share in the right place, rounds."""
    rows: list[list[str]] = []
    for fault, strength in dict.fromkeys((one.fault, one.strength) for one in runs if one.fault is not None):
        mine = [one for one in runs if (one.fault, one.strength) == (fault, strength)]
        places = [one.place for one in mine if one.place is not None]
        after = [one.after for one in mine if one.after is not None]
        rows.append(
            [
                str(fault),
                f"{strength:g}",
                str(len(mine)),
                _share([one.found for one in mine]),
                _share([one.first for one in mine]),
                _share(places) if places else "",
                f"{np.median(after):.0f}" if after else "",
            ]
        )
    return rows


def alarms(runs: Sequence[Told]) -> list[list[str]]:
    """A row for each check that spoke in a healthy run: in how many, how severely."""
    healthy = [one for one in runs if one.fault is None]
    rows: list[list[str]] = []
    for check in CHECKS:
        severities = [severity for one in healthy for name, severity in one.findings if name == check.name]
        if severities:
            envs = sorted({one.env for one in healthy for name, _ in one.findings if name == check.name})
            rows.append([check.name, str(len(severities)), str(severities.count("severe")), ", ".join(envs)])
    return rows


def totals(runs: Sequence[Told]) -> dict[str, str]:
    """The shares that matter, over all planted and all healthy runs."""
    planted, healthy = [o for o in runs if o.fault is not None], [o for o in runs if o.fault is None]
    places = [one.place for one in planted if one.place is not None]
    after = [one.after for one in planted if one.after is not None]
    severe = [any(severity == "severe" for _, severity in one.findings) for one in healthy]
    return {
        "planted runs": str(len(planted)),
        "any finding": _share([bool(one.findings) for one in planted]),
        "right cause among the findings": _share([one.found for one in planted]),
        "right cause shown first": _share([one.first for one in planted]),
        "right place, where found and there is one": _share(places),
        "median rounds until found": f"{np.median(after):.0f}" if after else "-",
        "healthy runs": str(len(healthy)),
        "healthy with a severe finding": _share(severe),
        "healthy with any warning": _share([bool(one.findings) for one in healthy]),
    }


def held_out(runs: Sequence[Told]) -> list[Told]:
    """Runs in environments that no threshold was set on."""
    return [one for one in runs if one.env not in _SET_ON]


def markdown(rows: Rows) -> str:
    """All tables."""
    all_runs = told(rows)
    alone = told(rows, lambda check: not check.records)
    columns = {
        "held-out environments": held_out(all_runs),
        "all environments": all_runs,
        "held-out, round table alone": held_out(alone),
        "all, round table alone": alone,
    }
    counted = {name: totals(runs) for name, runs in columns.items()}
    names = list(next(iter(counted.values())))
    parts = [
        table(["", *columns], [[name, *(one[name] for one in counted.values())] for name in names]),
        "## By fault\n\n"
        + table(["fault", "strength", "runs", "found", "first", "place", "rounds"], by_fault(all_runs)),
        "## What is said of healthy runs\n\n"
        + table(["check", "healthy runs", "severe", "environments"], alarms(all_runs)),
        "## Thresholds, from the environments that they were set on\n\n"
        + table(["check", "healthy, largest", "with the fault, least", "median", "largest", "warning", "severe"],
                separated(rows)),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def separated(rows: Rows) -> list[list[str]]:
    """For each check, from the fitted environments only: the largest value of healthy runs, and the least, median and
    largest of the runs with its fault: what a threshold is chosen between."""
    found: list[list[str]] = []
    for check in CHECKS:
        mine = [r for r in rows if r["check"] == check.name and r["last"] and r["env"] in _SET_ON]
        healthy = [row["value"] for row in mine if row["fault"] is None]
        planted = [row["value"] for row in mine if check.name in right_checks(row["fault"])]
        if healthy and planted:
            marks = [max(healthy), min(planted), float(np.median(planted)), max(planted)]
            found.append([check.name, *(f"{mark:.3g}" for mark in marks), f"{check.warning:g}", f"{check.severe:g}"])
    return found


def _share(values: Sequence[bool | None]) -> str:
    return f"{sum(map(bool, values))}/{len(values)}" if values else "-"
