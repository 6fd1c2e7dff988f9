"""`rollsight sql`: query a run."""

from pathlib import Path
from typing import Annotated

import tyro

from rollsight import runs
from rollsight.cli import output
from rollsight.errors import RollsightError


def sql(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    query: Annotated[str, tyro.conf.arg(metavar="QUERY")],
    /,
    *,
    limit: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 50 in a table, all with --json)")
    ] = None,
    json: bool = False,
) -> None:
    """Query a run's records, rounds and evaluations with SQL (DuckDB's dialect).

    - records: one row per record; rounds: one row per complete round.
    - evaluations: one row per evaluation episode; round 0 is before training.
    - run: one row, the metadata; nested entries are JSON: versions->>'torch'.
    - "describe records" lists the columns.

    Example: rollsight sql runs/lander "select round, timesteps, return_mean from rounds"

    Args:
        run: The run folder.
        query: What to ask, such as "select round, avg(reward) from records group by round".
        limit: Print at most this many rows.
        json: Print a JSON list with one object per row.
    """
    if limit is not None and limit < 1:
        raise RollsightError(f"--limit must be at least 1, not {limit}")
    relation = runs.open(run).sql(query)
    columns = relation.columns
    limit = limit if limit is not None or json else 50
    rows = (relation if limit is None else relation.limit(limit)).fetchall()
    if json:
        output.print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    console = output.console()
    output.print_rows(console, columns, rows)
    total = relation.count("*").fetchall()[0][0]
    if total > len(rows):
        console.print(f"{len(rows)} of {total} rows: --limit N shows more")
