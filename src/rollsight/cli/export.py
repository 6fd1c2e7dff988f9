"""`rollsight export`: a run's table as one file for other tools."""

import csv
import json
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from rollsight import runs
from rollsight.cli import output
from rollsight.errors import RollsightError
from rollsight.escaping import visible

Format = Literal["csv", "parquet", "json"]


def export(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    table: Literal["records", "rounds", "evaluations"] = "records",
    format: Annotated[
        Format | None,
        tyro.conf.arg(metavar="{csv,parquet,json}", help_behavior_hint="(default: from the file's suffix)"),
    ] = None,
    overwrite: bool = False,
) -> None:
    """Write a run's records, rounds or evaluations to a CSV, Parquet or JSON file.

    - CSV holds lists, such as observations, as JSON text.
    - JSON is a list with one object per row; NaN and infinities become null.

    Example: rollsight export runs/lander --out records.parquet

    Args:
        run: The run folder.
        out: The file to write.
        table: What to write.
        format: The file format.
        overwrite: Replace the file if it exists.
    """
    chosen = format or _format_of(out)
    output.check_free([out], overwrite=overwrite)
    rows = runs.open(run).sql(f"select * from {table}").to_arrow_table()
    with runs.whole_file(out) as temporary:
        match chosen:
            case "parquet":
                pq.write_table(rows, temporary, compression="zstd")
            case "csv":
                _write_csv(rows, temporary)
            case "json":
                _write_json(rows, temporary)
    output.console().print(f"{rows.num_rows} {table} written to {visible(str(out))}", soft_wrap=True)


def _format_of(out: Path) -> Format:
    match out.suffix.lower():
        case ".csv":
            return "csv"
        case ".parquet":
            return "parquet"
        case ".json":
            return "json"
    raise RollsightError(f"{out} does not say its format: end it in .csv, .parquet or .json, or give --format")


def _write_csv(rows: pa.Table, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(rows.column_names)
        for batch in rows.to_batches(max_chunksize=4096):  # a batch at a time: Python's values are far larger
            for row in batch.to_pylist():
                writer.writerow(
                    json.dumps(runs.jsonable(value)) if isinstance(value, list | dict) else value
                    for value in row.values()
                )


def _write_json(rows: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        separator = "[\n"
        for batch in rows.to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                file.write(separator + json.dumps(runs.jsonable(row, non_finite_as_null=True), allow_nan=False))
                separator = ",\n"
        file.write("\n]\n" if rows.num_rows else "[]\n")
