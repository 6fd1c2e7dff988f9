"""Each round's numbers, and its records of the highest and lowest scores, to the experiment trackers that the user has
running: Weights & Biases, trackio, MLflow, TensorBoard.

A tracker is used where a run of it is active in this process, and is never imported here.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rollsight.arrays import Array
from rollsight.errors import OptionError
from rollsight.escaping import plain_markdown

RECORDS = "influence/records"  # what the table is called
_ROUNDS_A_FILE = 100  # of MLflow's table: appending reads and writes all of a file


@dataclass(frozen=True, eq=False)
class Table:
    """Records of one round.

    columns: name -> a text, number, boolean or None for each of the records.
    pictures: (H, W, 3) bytes of red, green, blue for each; empty where there are none.
    """

    columns: Mapping[str, Sequence[Any]]
    pictures: Sequence[Array] = ()

    @property
    def rows(self) -> list[list[Any]]:
        """The values of each record, in the order of the columns."""
        return [list(row) for row in zip(*self.columns.values(), strict=True)]

    @property
    def strip(self) -> Array | None:
        """(H, W, 3) all pictures side by side; None where there are none."""
        return np.concatenate(self.pictures, axis=1) if self.pictures else None


Scalars: TypeAlias = Mapping[str, float]
Send: TypeAlias = Callable[[Scalars, "Table | None", int], None]


def scalars(summary: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a round's summary, by the names that Stable-Baselines3's logger shows: `influence/*`."""
    return {
        f"influence/{name.removeprefix('score_')}": float(value)
        for name, value in summary.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


class Trackers:
    """Where the rounds of one run are sent to.

    tensorboard: a folder for TensorBoard's event files; None writes none.
    A tracker that fails is a warning once, and training goes on.

    Raises:
        OptionError: `tensorboard` is given and the package is not installed.
    """

    def __init__(self, tensorboard: Path | None = None) -> None:
        self._writer: Any = None if tensorboard is None else _tensorboard(tensorboard)
        self._table: Table | None = None
        self._growing: dict[Any, Any] = {}  # W&B's tables, by the id of their run
        self._warned = set[str]()

    def wanted(self, writers: Sequence[Any] = ()) -> bool:
        """Whether there is a tracker that a table would go to. writers: of the host, of TensorBoard's event files."""
        return self._writer is not None or bool(writers) or bool(self._active())

    def keep(self, table: Table | None) -> None:
        """Send this table with the round's numbers."""
        self._table = table

    def log(self, summary: Mapping[str, Any], host_logger: Any = None) -> None:
        """Send a round's summary, with its `round`, and the table that was kept.

        host_logger: the logger of Stable-Baselines3 that shows the same numbers already; a tracker that it writes to
            gets them from there.
        """
        step = int(summary.get("timesteps") or summary["round"])
        values, told = scalars(summary), _told_by(host_logger)
        self._send(summary["round"], step, lambda name: {} if name in told else values, writers_of(host_logger))

    def log_table(self, round: int, step: int, writers: Sequence[Any] = ()) -> None:
        """Send the table that was kept, alone: the host sends the numbers. writers: of TensorBoard's event files."""
        self._send(round, step, lambda _: {}, writers)

    def close(self) -> None:
        """Close TensorBoard's files; the user's own trackers stay open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _send(self, round: int, step: int, values: Callable[[str], Scalars], writers: Sequence[Any]) -> None:
        table, self._table = self._table, None
        active = {name: (send, values(name)) for name, send in self._active().items()}
        if self._writer is not None:
            active["tensorboard"] = partial(_to_tensorboard, self._writer), values("")
        for number, writer in enumerate(writers):  # they have the numbers
            active[f"tensorboard of the host {number or ''}".rstrip()] = partial(_to_tensorboard, writer), {}
        for name, (send, numbers) in active.items():
            if not numbers and table is None:
                continue
            try:
                send(numbers, table, step)
            except Exception as error:
                if name not in self._warned:
                    self._warned.add(name)
                    reason = str(error).strip().partition("\n")[0]
                    warnings.warn(
                        f"{name} did not take the numbers of round {round} ({type(error).__name__}: {reason}); "
                        "training goes on",
                        stacklevel=3,
                    )

    def _active(self) -> dict[str, Send]:
        """The trackers with an active run."""
        found: dict[str, Send] = {}
        if (run := _wandb_run()) is not None:
            found["wandb"] = partial(_to_wandb, run, self._growing)
        if (trackio := _trackio_run()) is not None:
            found["trackio"] = partial(_to_trackio, trackio)
        mlflow = sys.modules.get("mlflow")
        if mlflow is not None and (active := getattr(mlflow, "active_run", lambda: None)()) is not None:
            found["mlflow"] = partial(_to_mlflow, mlflow, active)
        return found


@contextmanager
def default_variable(name: str, value: str) -> Iterator[None]:
    """The environment variable has this value in the block, if it has none."""
    given = name in os.environ
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if not given:
            del os.environ[name]


def writers_of(logger: Any) -> list[Any]:
    """The writers of TensorBoard's event files that Stable-Baselines3's logger has."""
    formats = getattr(logger, "output_formats", ())
    return [one.writer for one in formats if type(one).__name__ == "TensorBoardOutputFormat"]


def _told_by(logger: Any) -> set[str]:
    """The trackers that the host's logger writes to."""
    formats = [type(one).__name__.lower() for one in getattr(logger, "output_formats", ())]
    told = {name for name in ("wandb", "trackio", "mlflow") if any(name in one for one in formats)}
    synced = getattr(getattr(_wandb_run(), "settings", None), "sync_tensorboard", False)
    return told | ({"wandb"} if synced and any("tensorboard" in one for one in formats) else set())


def _wandb_run() -> Any:
    return getattr(sys.modules.get("wandb"), "run", None)


def _trackio_run() -> Any:
    variable = getattr(sys.modules.get("trackio.context_vars"), "current_run", None)
    return None if variable is None else variable.get()


def _to_wandb(run: Any, growing: dict[Any, Any], values: Scalars, table: Table | None, step: int) -> None:
    # An axis of its own: W&B's step only rises, and the user's own calls count on it.
    run.define_metric("influence/*", step_metric="influence/step")
    logged: dict[str, Any] = {**values, "influence/step": step}
    if table is not None:
        wandb = sys.modules["wandb"]
        if (grown := growing.get(run.id)) is None:
            columns = [*table.columns, *(["picture"] if table.pictures else [])]
            try:
                grown = wandb.Table(columns=columns, log_mode="INCREMENTAL")
                growing[run.id] = grown
            except TypeError:  # of before 2025: a table a round, under one key
                grown = wandb.Table(columns=columns)
        for row in _rows(table, grown.columns, wandb.Image):
            grown.add_data(*row)
        logged[RECORDS] = grown
    run.log(logged)


def _to_trackio(run: Any, values: Scalars, table: Table | None, step: int) -> None:
    logged: dict[str, Any] = {**values, "influence/step": step}
    if table is not None:
        trackio = sys.modules["trackio"]
        columns = [*table.columns, *(["picture"] if table.pictures else [])]
        logged[RECORDS] = trackio.Table(columns=columns, data=_rows(table, columns, trackio.Image))
    run.log(logged)


def _rows(table: Table, columns: Sequence[str], image: Callable[[Array], Any]) -> list[list[Any]]:
    """The values of each record by these columns, its picture among them where they name it; None what there is not."""
    named = {**table.columns, "picture": [image(one) for one in table.pictures]}
    missing = [None] * len(table.rows)
    return [list(row) for row in zip(*(named.get(name) or missing for name in columns), strict=True)]


def _to_mlflow(mlflow: Any, active: Any, values: Scalars, table: Table | None, step: int) -> None:
    if values:
        mlflow.log_metrics(dict(values), step=step)
    if table is None:
        return
    first = (int(table.columns["round"][0]) - 1) // _ROUNDS_A_FILE * _ROUNDS_A_FILE + 1
    name = f"{RECORDS}/from-round-{first:06d}.json"
    with default_variable("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"):  # a line a round, in the user's terminal
        mlflow.log_table(dict(table.columns), name, run_id=active.info.run_id)
    if (strip := table.strip) is not None:  # one for the round: each is a file or two to send
        mlflow.log_image(strip, key=RECORDS, step=step)


def _to_tensorboard(writer: Any, values: Scalars, table: Table | None, step: int) -> None:
    for name, value in values.items():
        writer.add_scalar(name, value, step)
    if table is not None:
        heading = [[*table.columns], ["---"] * len(table.columns)]
        rows = [["" if value is None else plain_markdown(_short(value)) for value in row] for row in table.rows]
        lines = (f"| {' | '.join(row)} |" for row in [*heading, *rows])
        writer.add_text(RECORDS, "\n".join(lines), step)
        if (strip := table.strip) is not None:
            writer.add_image(RECORDS, strip, step, dataformats="HWC")
    writer.flush()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise OptionError(
            "{tensorboard} needs the package tensorboard, which is not installed: pip install tensorboard",
            tensorboard=str(folder),
        ) from error
    return SummaryWriter(str(folder))
