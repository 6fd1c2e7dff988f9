"""The chosen records as a file: CSV, Parquet or JSON, all stored columns."""

from __future__ import annotations

import io
import json
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from rollsight import runs
from rollsight.explorer.filtering import RECORD

Format = Literal["csv", "parquet", "json"]


def exported(table: pa.Table, records: np.ndarray, to: Format) -> bytes:
    """These records (n,) of a round, in this order, with their number in the buffer as the first column.

    Lists are JSON in a CSV; what is not a finite number is null in JSON.
    """
    chosen = table.take(pa.array(records)).add_column(0, RECORD, pa.array(records))
    if to == "json":
        rows = [runs.jsonable(row, non_finite_as_null=True) for row in chosen.to_pylist()]
        return json.dumps(rows, ensure_ascii=False, allow_nan=False, indent=1).encode("utf-8", "surrogatepass")
    out = io.BytesIO()
    if to == "parquet":
        pq.write_table(chosen, out)
    else:
        pa_csv.write_csv(_flat(chosen), out)
    return out.getvalue()


def _flat(table: pa.Table) -> pa.Table:
    """The table with lists as JSON."""
    for place, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            texts = [None if value is None else json.dumps(value) for value in table[place].to_pylist()]
            table = table.set_column(place, field.name, pa.array(texts, pa.string()))
    return table
