"""`rollsight report`: the story of a run in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from rollsight.cli import output
from rollsight.errors import OptionError


def report(
    run: Annotated[Positional[Path], arg(metavar="RUN")],
    /,
    *,
    out: Annotated[Path, arg(metavar="FILE", aliases=("-o",))] = Path("report.html"),
    compare: Annotated[tuple[Path, ...], arg(metavar="RUN")] = (),
    round: Annotated[int | None, arg(metavar="K", help_behavior_hint="(default: the last that was scored)")] = None,
    overwrite: bool = False,
) -> None:
    """Write what there is to see of a run into one HTML file that opens without a network.

    The verdict first: did it learn, can its scores be believed, what hurt, what to try. Then what it rests on.

    Example: rollsight report runs/lander -o lander.html

    Args:
        run: The run folder.
        out: The file.
        compare: Runs to draw next to it.
        round: The round whose records are shown.
        overwrite: Replace the file if it is there.
    """
    from rollsight.explorer.report import write_report

    if out.suffix.lower() not in (".html", ".htm"):
        raise OptionError("{out} is not an HTML file: end its name in .html", out=str(out))
    output.check_free([out], overwrite=overwrite)
    path = write_report(run, out, compare=compare, round=round)
    output.console().print(
        f"{path}: {path.stat().st_size / 2**20:.1f} MB", markup=False, highlight=False, soft_wrap=True
    )
