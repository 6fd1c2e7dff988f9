"""Each round's numbers to the experiment trackers that the user has running: Weights & Biases, trackio, MLflow,
TensorBoard.

A tracker is used where a run of it is active in this process, and is never imported here.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from rollsight.errors import OptionError

Scalars: TypeAlias = Mapping[str, float]
Send: TypeAlias = Callable[[Scalars, int], None]


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
        self._warned = set[str]()

    def log(self, summary: Mapping[str, Any], host_logger: Any = None) -> None:
        """Send a round's summary, with its `round`.

        host_logger: the logger of Stable-Baselines3 that shows the same numbers already; a tracker that it writes to
            gets them from there.
        """
        if not (active := _active(host_logger)) and self._writer is None:
            return
        values = scalars(summary)
        step = int(summary.get("timesteps") or summary["round"])
        if self._writer is not None:
            active["tensorboard"] = self._to_tensorboard
        for name, send in active.items():
            try:
                send(values, step)
            except Exception as error:
                if name not in self._warned:
                    self._warned.add(name)
                    reason = str(error).strip().partition("\n")[0]
                    warnings.warn(
                        f"{name} did not take the numbers of round {summary['round']} ({type(error).__name__}: "
                        f"{reason}); training goes on",
                        stacklevel=2,
                    )

    def close(self) -> None:
        """Close TensorBoard's files; the user's own trackers stay open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _to_tensorboard(self, values: Scalars, step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


def _active(logger: Any) -> dict[str, Send]:
    """The trackers with an active run that the host's logger does not write to."""
    formats = [type(one).__name__.lower() for one in getattr(logger, "output_formats", ())]
    found: dict[str, Send] = {}
    if (run := _wandb_run()) is not None and not any("wandb" in name for name in formats):
        synced = getattr(getattr(run, "settings", None), "sync_tensorboard", False)
        if not (synced and any("tensorboard" in name for name in formats)):
            found["wandb"] = lambda values, step: _to_wandb(run, values, step)
    if (trackio := _trackio_run()) is not None and not any("trackio" in name for name in formats):
        found["trackio"] = lambda values, step: trackio.log({**values, "influence/step": step})
    mlflow = sys.modules.get("mlflow")
    active = getattr(mlflow, "active_run", lambda: None)()
    if mlflow is not None and active is not None and not any("mlflow" in name for name in formats):
        found["mlflow"] = lambda values, step: mlflow.log_metrics(dict(values), step=step)
    return found


def _wandb_run() -> Any:
    return getattr(sys.modules.get("wandb"), "run", None)


def _trackio_run() -> Any:
    variable = getattr(sys.modules.get("trackio.context_vars"), "current_run", None)
    return None if variable is None else variable.get()


def _to_wandb(run: Any, values: Scalars, step: int) -> None:
    # An axis of its own: W&B's step only rises, and the user's own calls count on it.
    run.define_metric("influence/*", step_metric="influence/step")
    run.log({**values, "influence/step": step})


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise OptionError(
            "{tensorboard} needs the package tensorboard, which is not installed: pip install tensorboard",
            tensorboard=str(folder),
        ) from error
    return SummaryWriter(str(folder))
