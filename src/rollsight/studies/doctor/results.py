"""How often the doctor is right: tables from what the checks measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollsight.doctor.check import Check
from rollsight.doctor.examination import CHECKS, ranked
from rollsight.studies.doctor import language, others
from rollsight.studies.doctor.baseline import BASELINE, EXPLAINED_VARIANCE
from rollsight.studies.doctor.faults import FAULTS, FITTED, ODD, UNDONE, PlantedFault
from rollsight.studies.doctor.language import LANGUAGE_FAULTS, LanguageFault
from rollsight.studies.doctor.measured import right_checks
from rollsight.studies.markdown import table

Rows = Sequence[Mapping[str, Any]]
_SET_ON = (*FITTED, language.FITTED)


@dataclass(frozen=True)
class Told:
    """What the doctor says of one run.

    env: name of the environment.
    fault: name of the planted one, None for a healthy run.
    strength: of the fault.
    seed: of the run.
    engine: what trained.
    findings: (check, severity), first shown first.
    after: rounds until the right check spoke, None where it did not.
    place: whether it pointed to the right place; None where there is none.
    """

    env: str
    fault: str | None
    strength: float
    seed: int
    engine: str
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


def told(rows: Rows, checks: Sequence[Check] = CHECKS) -> list[Told]:
    """What these checks say of every run."""
    by_run: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_run.setdefault(row["run"], []).append(row)
    return [_told(mine, checks) for mine in by_run.values()]


def _told(rows: Rows, checks: Sequence[Check]) -> Told:
    about, by_name = rows[0], {check.name: check for check in checks}
    spoken = [
        (row, severity)
        for row in rows
        if row["check"] in by_name and (severity := by_name[row["check"]].severity(row["value"])) is not None
    ]
    last = ranked({row["check"]: severity for row, severity in spoken if row["last"]}, checks)
    right = [row for row, _ in spoken if row["check"] in right_checks(about["fault"])]
    at_end = [row for row in right if row["last"]]
    place = None
    if at_end and about["fault"] in FAULTS:
        place = _points_there(about["fault"], about["strength"], at_end[0])
    return Told(about["env"], about["fault"], about["strength"], about["seed"], about["engine"], tuple(last),
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
    """A row for each fault and strength: runs, share found, share found of those that are held out, share shown first,
    share in the right place, rounds."""
    rows: list[list[str]] = []
    for fault, strength in sorted(
        {(one.fault, one.strength) for one in runs if one.fault is not None}, key=_as_planted
    ):
        mine = [one for one in runs if (one.fault, one.strength) == (fault, strength)]
        places = [one.place for one in mine if one.place is not None]
        after = [one.after for one in mine if one.after is not None]
        rows.append(
            [
                str(fault),
                f"{strength:g}",
                str(len(mine)),
                _share([one.found for one in mine]),
                _share([one.found for one in mine if one.env not in _SET_ON]),
                _share([one.first for one in mine]),
                _share(places) if places else "",
                f"{np.median(after):.0f}" if after else "",
            ]
        )
    return rows


def _as_planted(one: tuple[str | None, float]) -> tuple[int, int]:
    """Faults in the order of the code, the strongest first, one that is not planted any more last."""
    faults: Mapping[str, PlantedFault | LanguageFault] = {**LANGUAGE_FAULTS, **FAULTS}
    fault, strength = str(one[0]), one[1]
    strengths = (*faults[fault].strengths, strength)
    return list(faults).index(fault), strengths.index(strength)


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


def parts(runs: Sequence[Told]) -> dict[str, list[Told]]:
    """The runs by what they can show. Healthy runs have no strength: they are where their seed is."""
    planted_faults: Mapping[str, PlantedFault | LanguageFault] = {**FAULTS, **LANGUAGE_FAULTS}
    weaker = {(name, s) for name, fault in planted_faults.items() for s in fault.strengths[1:]}
    held_out = [one for one in runs if one.env not in _SET_ON]
    small = [one for one in held_out if one.env != language.SMOLLM2]
    planted = [one for one in small if one.fault is None or one.engine != "compiled"]
    strong = [one for one in planted if (one.fault, one.strength) not in weaker]
    return {
        "thresholds set on": [o for o in runs if o.env in _SET_ON and (o.fault is None or o.engine != "compiled")],
        "held out, seed 0": [one for one in strong if one.seed == 0],
        "held out, seed 1": [one for one in strong if one.seed == 1],
        "held out, weaker": [one for one in planted if (one.fault, one.strength) in weaker],
        "compiled engine": [one for one in runs if one.fault is not None and one.engine == "compiled"],
        "SmolLM2": [one for one in held_out if one.env == language.SMOLLM2],
    }


def markdown(rows: Rows) -> str:
    """All tables."""
    all_runs = told(rows)
    with_variance = {row["run"] for row in rows if row["check"] == EXPLAINED_VARIANCE.name}
    same = [row for row in rows if row["run"] in with_variance]
    tables = [
        _totals(parts(all_runs)),
        "## Without records\n\n" + _totals(
            {
                "doctor": [one for one in told(same) if one.env not in _SET_ON],
                "round table alone": [one for one in told(same, BASELINE) if one.env not in _SET_ON],
            }
        ),
        "## Beside rlprobe and rl-doctor\n\n" + table(["", *others.TOOLS, "rollsight doctor"], compared(rows)),
        "## By fault\n\n"
        + table(["fault", "strength", "runs", "found", "held out", "first", "place", "rounds"], by_fault(all_runs)),
        "## What is said of healthy runs\n\n"
        + table(["check", "healthy runs", "severe", "environments"], alarms(all_runs)),
        "## Thresholds, from the environments that they were set on\n\n"
        + table(["check", "healthy, largest", "with the fault, least", "median", "largest", "warning", "severe"],
                separated(rows)),
    ]  # fmt: skip
    return "\n\n".join(tables) + "\n"


def compared(rows: Rows) -> list[list[str]]:
    """Runs of language models: what the other tools say, and what the doctor says of the same runs."""
    said: dict[str, set[str]] = {}
    for row in rows:
        said.setdefault(row["run"], set()).add(row["check"])
    both = [row for row in rows if set(others.TOOLS) <= said[row["run"]]]
    faults = {row["run"]: row["fault"] for row in both}
    ours = dict(zip(dict.fromkeys(row["run"] for row in both), told(both), strict=True))
    faulty, healthy = [run for run, f in faults.items() if f], [run for run, f in faults.items() if not f]

    def warned(tool: str, run: str) -> bool:
        return any(name.startswith(f"{tool}: ") for name in said[run])

    def named(tool: str, run: str) -> bool | None:
        right = others.RIGHT.get(faults[run], {}).get(tool)
        return any(f"{tool}: {name}" in said[run] for name in right) if right else None

    def line(
        what: str, theirs: Callable[[str, str], bool | None], mine: Callable[[Told], bool], of: list[str]
    ) -> list[str]:
        shares = [_share([one for run in of if (one := theirs(tool, run)) is not None]) for tool in others.TOOLS]
        return [what, *shares, _share([mine(ours[run]) for run in of])]

    return [
        line("faulty runs with any warning", warned, lambda one: bool(one.findings), faulty),
        line("right cause, of the faults that it has a check of", named, lambda one: one.found, faulty),
        line("healthy runs with a warning", warned, lambda one: bool(one.findings), healthy),
    ]


def _totals(columns: Mapping[str, Sequence[Told]]) -> str:
    counted = {name: totals(runs) for name, runs in columns.items()}
    names = list(next(iter(counted.values())))
    return table(["", *columns], [[name, *(one[name] for one in counted.values())] for name in names])


def separated(rows: Rows) -> list[list[str]]:
    """For each check, from the fitted environments only: the largest value of healthy runs, and the least, median and
    largest of the runs with its fault: what a threshold is chosen between."""
    found: list[list[str]] = []
    for check in (*CHECKS, EXPLAINED_VARIANCE):
        mine = [r for r in rows if r["check"] == check.name and r["last"] and r["env"] in _SET_ON]
        healthy = [row["value"] for row in mine if row["fault"] is None]
        planted = [row["value"] for row in mine if check.name in right_checks(row["fault"])]
        if healthy and planted:
            marks = [max(healthy), min(planted), float(np.median(planted)), max(planted)]
            found.append([check.name, *(f"{mark:.3g}" for mark in marks), f"{check.warning:g}", f"{check.severe:g}"])
    return found


def _share(values: Sequence[bool | None]) -> str:
    return f"{sum(map(bool, values))}/{len(values)}" if values else "-"
