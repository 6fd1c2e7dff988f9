"""The doctor beside a run that trains: it keeps the last rounds, looks at them while that is cheap, and says each
finding once."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rollsight import runs
from rollsight.doctor.evidence import Evidence, of_summaries
from rollsight.doctor.examination import NotLookedAt, examined
from rollsight.doctor.finding import Finding

_SHARE = 0.01  # of the time of training that the checks may take
_KEPT = 6  # rounds whose records are kept
_NOT_LOOKED_AT = ("episode_start",)
_FIRST = 0.1  # seconds that the first look is expected to take


class LiveDoctor:
    """Looks at the rounds of a run as they end.

    metadata: of the run, as `run.json` has it; run: its folder, where it has one. A look is left out where it would
    take the checks beyond a hundredth of the time since the start; `spent` is what all looks took, in seconds, and
    `failed` are the checks that raised in the last round, where it was looked at.
    """

    def __init__(
        self, metadata: Mapping[str, Any], run: Path | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._metadata, self._run, self._clock = metadata, run or Path("RUN"), clock
        self._columns: deque[tuple[int, Mapping[str, Any]]] = deque(maxlen=_KEPT)
        self._summaries: list[Mapping[str, Any]] = []
        self._said: set[str] = set()
        self._started, self._last = clock(), _FIRST
        self.spent = 0.0
        self.failed: tuple[NotLookedAt, ...] = ()

    def keep(self, round: int, columns: Mapping[str, Any]) -> None:
        """The records of a round, as they go to the run folder."""
        started = self._clock()
        if self.spent > _SHARE * (started - self._started):
            return
        # Copies: some are views of a buffer that the next round fills. What they cost as tables a look pays.
        copied = {name: np.array(c) if isinstance(c, np.ndarray) else c for name, c in columns.items()}
        self._columns.append((round, {name: c for name, c in copied.items() if name not in _NOT_LOOKED_AT}))
        self.spent += self._clock() - started

    def look(self, round: int, summary: Mapping[str, Any]) -> list[Finding]:
        """What was not found before, now that the round is over; nothing where a look would cost too much."""
        self._summaries.append({"round": round, **summary})
        now, self.failed = self._clock(), ()
        if self.spent + self._last > _SHARE * (now - self._started):
            return []
        rows = self._summaries
        tables = {number: runs.as_table(columns) for number, columns in self._columns}
        seen = Evidence(self._metadata, [row["round"] for row in rows], of_summaries(rows), tables)
        result = examined(seen, self._run)
        self.failed = tuple(one for one in result.not_looked_at if one.failed)
        found = [one for one in result.findings if one.check not in self._said]
        self._said |= {one.check for one in found}
        self._last = self._clock() - now
        self.spent += self._last
        return [one for one in found if one.severity != "note"]


def as_columns(round: int, findings: Sequence[Finding]) -> dict[str, Any]:
    """The columns of the run folder's table `findings`."""
    plain = ("check", "family", "severity", "sure", "wrong")
    return {
        "round": np.full(len(findings), round),
        **{name: [getattr(one, name) for one in findings] for name in plain},
        "value": np.array([one.value for one in findings], np.float64),
        "figures": [json.dumps(runs.jsonable(one.figures)) for one in findings],
        "where": [json.dumps({k: v for k, v in asdict(one.where).items() if v}) for one in findings],
    }
