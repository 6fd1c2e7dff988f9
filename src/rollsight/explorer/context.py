"""What every page is given: the runs, and where the app stands behind a proxy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rollsight import runs
from rollsight.explorer.addresses import Address, address_of, path_of
from rollsight.explorer.reading import Reading
from rollsight.explorer.tables import column, row
from rollsight.explorer.trust import Trust, trust_of

State = Literal["running", "ended", "stopped"]


@dataclass(frozen=True)
class Context:
    """Attributes:
    reading: the runs that are served.
    prefix: the path of the app, with slashes at both ends.
    """

    reading: Reading
    prefix: str = "/"

    def href(self, address: Address) -> str:
        """The address as a link."""
        return self.prefix.rstrip("/") + path_of(address)

    def address(self, path: str | None, search: str | None) -> Address | None:
        """What the browser's address bar shows; None where that is no page."""
        path = path or "/"
        if path.startswith(self.prefix):
            path = path.removeprefix(self.prefix.rstrip("/"))
        return address_of(path, search or "")

    def token(self) -> str:
        """What changes whenever any run does."""
        return " ".join(f"{name}:{self.reading.token(name)}" for name in self.reading.names())

    def state(self, name: str) -> State:
        """Whether the run is being written now, has all its rounds, or stopped before."""
        if runs.is_being_written(self.reading.path(name)):
            return "running"
        metadata = self.reading.metadata(name)
        wanted = (metadata.get("run_settings") or {}).get("rounds")
        done = len(self.reading.round_numbers(name))
        return "stopped" if isinstance(wanted, int) and done < wanted else "ended"

    def summary(self, name: str, round: int) -> Mapping[str, Any]:
        """The round's row of the table `rounds`; empty where it has none."""
        rounds = self.reading.rounds(name)
        if not len(rounds):
            return {}
        numbers = rounds["round"].to_pylist()
        return row(rounds, numbers.index(round)) if round in numbers else {}

    def trust(self, name: str, round: int) -> Trust:
        """Whether the round's scores can be believed."""
        return trust_of(self.summary(name, round), column(self.reading.rounds(name), "trust_split_half_permuted"))
