"""`rollsight doctor`: what is wrong with a run, and where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from rollsight import runs
from rollsight.cli import output
from rollsight.escaping import visible

if TYPE_CHECKING:
    from rollsight.doctor.examination import Examined
    from rollsight.doctor.finding import Finding

_STYLES = {"severe": "bold red", "warning": "bold yellow", "note": "bold"}


def doctor(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    all: bool = False,
    json: bool = False,
) -> None:
    """Say what is wrong with a run: the cause, the figures that show it, the place, and what to try.

    - Looks at every round's summary, and at the records of up to 24 rounds spread evenly over the run.
    - Worst first; of equally severe findings, causes before what follows from them.
    - Finding nothing does not prove that a run is sound: docs/studies/doctor.md says how often planted
      faults are found, and which are not.

    Example: rollsight doctor runs/lander

    Args:
        run: The run folder.
        all: List the checks that could not be made too, and which column they lack.
        json: Print JSON instead.
    """
    from rollsight.doctor import examine_fully

    opened = runs.open(run)
    examined = examine_fully(opened)
    if json:
        output.print_json({"run": str(run), **vars(examined)})
        return
    show(opened.name, examined, output.console(), all=all)


def show(name: str, examined: Examined, console: Console, *, all: bool) -> None:
    """Print every finding, and how much was looked at."""
    looked, rounds = examined.read
    counted = f"{len(examined.findings)} finding{'' if len(examined.findings) == 1 else 's'}"
    console.print(f"{visible(name)}: {counted} in {rounds} rounds, records of {looked} read", style="bold")
    for finding in examined.findings:
        console.print()
        _show(finding, console)
    if all:
        for missing in examined.not_looked_at:
            console.print(f"not looked at: {missing.check} ({visible(missing.why)})", style="dim", soft_wrap=True)
    elif examined.not_looked_at:
        console.print(f"\n{len(examined.not_looked_at)} checks lack columns: --all lists them", style="dim")


def _show(finding: Finding, console: Console) -> None:
    console.print(f"{finding.severity}: {finding.check} ({finding.sure})", style=_STYLES[finding.severity])
    console.print(f"  {finding.wrong}", soft_wrap=True)
    for name, values in vars(finding.where).items():
        if values:
            console.print(f"  {name}: {_listed(name, values)}", soft_wrap=True)
    console.print(f"  likely causes: {'; '.join(finding.causes)}", soft_wrap=True)
    console.print(f"  try: {'; '.join(finding.tries)}", soft_wrap=True)
    console.print(f"  look: {output.command(*finding.command[1:])}", soft_wrap=True)
    console.print(f"  explorer: {visible(finding.address)}", soft_wrap=True)
    console.print(f"  more: docs/doctor/{finding.family}.md#{finding.check.replace('_', '-')}", style="dim")


def _listed(name: str, values: Sequence[Any]) -> str:
    if name == "rounds":
        return runs.spell(values)
    if name == "records":
        return ", ".join(f"{index} of round {round}" for round, index in values[:4])
    return ", ".join(visible(str(value)) for value in values[:8])
