"""The run folder: what a training run leaves on disk, and the only package that knows how it is laid out.

```text
runs/NAME/
  run.json                          metadata, written once
  records/round-000001.parquet      every record of the round
  rounds/round-000001.parquet       the round's summary, one row; written last, so the round is complete with it
  evaluations/round-000001.parquet  one row per evaluation episode; round 0 is before training
  findings/round-000004.parquet     what the doctor found in the round that it had not found before
  snapshots/round-000010.pt         the frozen round
  policies/round-000003.pt          the frozen round of a language model: what is trained of it, without its base
  checkpoints/round-000012.pt       what training goes on from after an interruption; the newest only
  SHA256SUMS                        the digest of every file above but run.json, which holds its own
  .lock                             held by the one writer
```
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from rollsight.errors import MissingExtra

try:
    import filelock as _filelock  # noqa: F401
    import pyarrow as _pyarrow  # noqa: F401

    if find_spec("duckdb") is None:  # loaded at the first query only
        raise ModuleNotFoundError(name="duckdb")
except ModuleNotFoundError as error:
    raise MissingExtra("reading and writing runs", error.name or "pyarrow", "runs") from error

from rollsight.lazy import at_first_use
from rollsight.runs.completeness import Completeness, completeness
from rollsight.runs.layout import change_token, find_runs, is_being_written, is_run, spell, whole_file
from rollsight.runs.metadata import is_language, jsonable
from rollsight.runs.ranking import column_as_floats, rank_records, scored_records
from rollsight.runs.reader import Run
from rollsight.runs.reader import open_run as open
from rollsight.runs.results import keep_result, results_folder, stored_results
from rollsight.runs.writer import RunWriter, as_table, create, resume

if TYPE_CHECKING:
    from rollsight.runs.recorder import Recorder as Recorder

__getattr__ = at_first_use(__name__, {"Recorder": "recorder"})  # it needs torch, and reading does not

__all__ = [
    "Completeness",
    "Recorder",
    "Run",
    "RunWriter",
    "as_table",
    "change_token",
    "column_as_floats",
    "completeness",
    "create",
    "find_runs",
    "is_being_written",
    "is_language",
    "is_run",
    "jsonable",
    "keep_result",
    "open",
    "rank_records",
    "results_folder",
    "resume",
    "scored_records",
    "spell",
    "stored_results",
    "whole_file",
]
