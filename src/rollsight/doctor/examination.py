"""All checks over a run: what they find, worst first, and what could not be looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rollsight import runs
from rollsight.doctor import advantages, data, environments, language, policy, reward, value_function
from rollsight.doctor.check import Check, Measured
from rollsight.doctor.evidence import Evidence, Missing, read
from rollsight.doctor.finding import SEVERITIES, Finding, Severity, address, query
from rollsight.runs import Run

# Causes before what follows from them: of two equally severe findings the earlier one is shown first.
CHECKS: tuple[Check, ...] = (
    *data.CHECKS,
    *environments.CHECKS,
    *reward.CHECKS,
    *language.CHECKS,
    *advantages.CHECKS,
    *policy.CHECKS,
    *value_function.CHECKS,
)


@dataclass(frozen=True)
class NotLookedAt:
    """A check that could not be made.

    check: its name.
    why: the reason, in words.
    failed: whether it raised, rather than lacked a column.
    """

    check: str
    why: str
    failed: bool = False


@dataclass(frozen=True)
class Examined:
    """What an examination found.

    findings: worst first.
    not_looked_at: checks whose columns are missing.
    read: how many rounds' records were read, and of how many.
    """

    findings: tuple[Finding, ...]
    not_looked_at: tuple[NotLookedAt, ...]
    read: tuple[int, int]


def examine(run: Run | Path | str) -> list[Finding]:
    """What is wrong with a run, worst first. See `examine_fully` for what could not be looked at.

    Raises:
        RollsightError: there is no such run, or its files are damaged.
    """
    return list(examine_fully(run).findings)


def examine_fully(run: Run | Path | str) -> Examined:
    """The findings, and what could not be looked at.

    Raises:
        RollsightError: as `examine`.
    """
    opened = run if isinstance(run, Run) else runs.open(run)
    return examined(read(opened), opened.path)


def examined(seen: Evidence, run: Path) -> Examined:
    """The same of evidence that was read already."""
    found, missing = dict[str, Finding](), []
    for check, measured in measure(seen):
        if isinstance(measured, NotLookedAt):
            missing.append(measured)
        elif measured is not None and (finding := _finding(check, measured, seen, run)) is not None:
            found[check.name] = finding
    order = ranked({name: one.severity for name, one in found.items()})
    findings = tuple(replace(found[name], severity=severity) for name, severity in order)
    return Examined(findings, tuple(missing), (len(seen.looked_at), len(seen.rounds)))


def ranked(severities: Mapping[str, Severity], checks: Sequence[Check] = CHECKS) -> list[tuple[str, Severity]]:
    """Checks that spoke with their severity, in the order in which they are shown: worst first, of equal ones causes
    first. What another finding explains comes after it, and is not more severe."""
    told = list[tuple[str, Severity, bool]]()
    for check in checks:
        if (severity := severities.get(check.name)) is None:
            continue
        causes = [severities[name] for name in check.explained_by if name in severities]
        worst = min(causes, key=SEVERITIES.index, default=severity)
        told.append((check.name, max(severity, worst, key=SEVERITIES.index), bool(causes)))
    told.sort(key=lambda one: (SEVERITIES.index(one[1]), one[2]))  # stable: else the order of the checks
    return [(name, severity) for name, severity, _ in told]


def measure(seen: Evidence, checks: Sequence[Check] = CHECKS) -> Iterator[tuple[Check, Measured | NotLookedAt | None]]:
    """Every check with what it measured; None where there was too little to look at."""
    if not len(seen.rounds):
        return
    for check in checks:
        try:
            with np.errstate(all="ignore"):
                yield check, check.measure(seen)
        except Missing as error:
            yield check, NotLookedAt(check.name, f"needs the column {error.args[0]}")
        except Exception as error:  # of columns that it was not made for: the other checks go on
            yield check, NotLookedAt(check.name, f"failed on this run ({type(error).__name__}: {error})", True)


def _finding(check: Check, measured: Measured, seen: Evidence, run: Path) -> Finding | None:
    severity = check.severity(measured.value)
    if severity is None:
        return None
    return Finding(
        check=check.name,
        family=check.family,
        severity=severity,
        sure=check.sure,
        wrong=check.says.format(**measured.figures),
        value=measured.value,
        figures=measured.figures,
        where=measured.where,
        causes=check.causes,
        tries=check.tries,
        command=query(run, measured.where),
        address=address(run.resolve().name, measured.where),
        found_in=int(seen.rounds[-1]),
    )
