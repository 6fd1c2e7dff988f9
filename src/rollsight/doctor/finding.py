"""What the doctor says: one finding, and where to look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Severity: TypeAlias = Literal["severe", "warning", "note"]
Sure: TypeAlias = Literal["certain", "likely", "possible"]
SEVERITIES: tuple[Severity, ...] = ("severe", "warning", "note")


@dataclass(frozen=True)
class Where:
    """What a finding is about; all empty: the whole run.

    rounds: numbers of rounds.
    environments: numbers of environments.
    episodes: numbers of episodes.
    features: numbers of the observation.
    prompts: texts of prompts.
    records: (round, index in the round's table) of some that show it.
    """

    rounds: tuple[int, ...] = ()
    environments: tuple[int, ...] = ()
    episodes: tuple[int, ...] = ()
    features: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    records: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a run.

    check: its name, as in the documentation.
    family: the page there.
    severity: how bad it is.
    sure: how sure the check is of the cause.
    wrong: one sentence.
    value: the check's statistic; larger is worse.
    figures: what shows it.
    where: what it is about.
    causes: likely ones, the likeliest first.
    tries: what to try, the likeliest first.
    command: the words of a command line that shows the place.
    address: the page of the explorer that shows the place.
    found_in: the round after which it was found.
    """

    check: str
    family: str
    severity: Severity
    sure: Sure
    wrong: str
    value: float
    figures: Mapping[str, float]
    where: Where
    causes: tuple[str, ...]
    tries: tuple[str, ...]
    command: tuple[str, ...]
    address: str
    found_in: int


def address(run: str, where: Where) -> str:
    """Where the explorer shows it."""
    if where.records:
        round, index = where.records[0]
        return f"/runs/{run}/record/{round}/{index}"
    return f"/runs/{run}/round/{where.rounds[0]}" if where.rounds else f"/runs/{run}"


def query(run: Path, where: Where) -> tuple[str, ...]:
    """The words of the command line that shows it."""
    table = "records" if where.environments or where.episodes or where.records else "rounds"
    conditions = []
    if where.environments:
        conditions.append(f"env in ({', '.join(map(str, where.environments[:8]))})")
    if where.episodes:
        conditions.append(f"episode in ({', '.join(map(str, where.episodes[:8]))})")
    if where.rounds:
        conditions.append(f"round in ({', '.join(map(str, where.rounds[:8]))})")
    elif where.records:
        conditions.append(f"round = {where.records[0][0]}")
    condition = f" where {' and '.join(conditions)}" if conditions else ""
    return "rollsight", "sql", str(run), f"select * from {table}{condition} limit 20"
