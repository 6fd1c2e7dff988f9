"""The addresses of the pages: every state of the explorer is one that can be sent, reloaded and bookmarked.

```text
/                            all runs                     /compare                      several runs next to each other
/runs/NAME                   one run over its rounds      /runs/NAME/behaviour          how a behaviour formed
/runs/NAME/round/7           one round                    /runs/NAME/trust              can its scores be believed
/runs/NAME/record/7/123      one record of it             /runs/NAME/prompts            language: prompts, completions
/runs/NAME/findings          what is wrong with it        /runs/NAME/files              is everything there
/runs/NAME/culprits          what taught a behaviour
```

What is chosen on a page stands behind the question mark, as `?target=return&kept=false`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode

RUN_PAGES = ("overview", "round", "record", "behaviour", "culprits", "findings", "trust", "prompts", "files")


@dataclass(frozen=True)
class Address:
    """Which page is shown, of what.

    Attributes:
        page: its name: "runs", "compare", or one of `RUN_PAGES`.
        run: name of the run; "" on pages of several.
        round: number of the round, from 1; None on pages without.
        record: index of the record in the buffer of its round, from 0; None on pages without.
        query: what is chosen on the page, name -> value.
    """

    page: str
    run: str = ""
    round: int | None = None
    record: int | None = None
    query: Mapping[str, str] = field(default_factory=dict)

    def at(self, **query: object) -> Address:
        """The same page with other choices; None removes one."""
        chosen = {name: str(value) for name, value in {**self.query, **query}.items() if value is not None}
        return Address(self.page, self.run, self.round, self.record, chosen)


def path_of(address: Address) -> str:
    """The address as a path with its query, without the prefix of a proxy."""
    parts = []
    if address.run:
        parts += ["runs", quote(address.run, safe="")]
    if address.page not in ("runs", "overview"):
        parts.append(address.page)
    parts += [str(number) for number in (address.round, address.record) if number is not None]
    query = f"?{urlencode(address.query)}" if address.query else ""
    return f"/{'/'.join(parts)}{query}"


def address_of(path: str, search: str = "") -> Address | None:
    """The address that a path (without a proxy's prefix) and its query string stand for; None where none does."""
    parts = [unquote(part) for part in path.split("/") if part]
    query = dict(parse_qsl(search.removeprefix("?")))
    match parts:
        case []:
            return Address("runs", query=query)
        case ["compare"]:
            return Address("compare", query=query)
        case ["runs", run]:
            return Address("overview", run, query=query)
        case ["runs", run, "round", round] if round.isdecimal():
            return Address("round", run, int(round), query=query)
        case ["runs", run, "record", round, record] if round.isdecimal() and record.isdecimal():
            return Address("record", run, int(round), int(record), query)
        case ["runs", run, ("behaviour" | "culprits" | "findings" | "trust" | "prompts" | "files") as page]:
            return Address(page, run, query=query)
    return None
