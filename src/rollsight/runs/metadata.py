"""`run.json`: what a run is, written once when it is created."""

import dataclasses
import datetime
import decimal
import enum
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rollsight.errors import RollsightError
from rollsight.runs.layout import FORMAT, METADATA, whole_file

_PACKAGES = ("rollsight", "torch", "numpy", "stable-baselines3", "sb3-contrib", "gymnasium", "pyarrow", "duckdb")


def describe_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a run made here and now: what every run says about its making, and the given entries beside it.

    Raises:
        RollsightError: a given entry has a name that is taken.
    """
    made = _making()
    taken = sorted(made.keys() & given.keys())
    if taken:
        raise RollsightError(f"the metadata name {taken[0]!r} is written by the run folder itself: choose another")
    return {**made, **jsonable(given)}


def write_metadata(run: Path, metadata: dict[str, Any]) -> None:
    """Write `run.json`."""
    with whole_file(run / METADATA) as temporary:
        temporary.write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_metadata(run: Path) -> dict[str, Any]:
    """The content of `run.json`.

    Raises:
        RollsightError: it is damaged, or written by a later version of rollsight.
    """
    path = run / METADATA
    try:
        metadata = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise RollsightError(f"{path} is damaged ({error}): restore or repair it, the tables are intact") from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get("format"), int):
        raise RollsightError(f"{path} is not the metadata of a rollsight run (it has no format number)")
    if metadata["format"] > FORMAT:
        raise RollsightError(
            f"{run} has run format {metadata['format']} and this rollsight reads up to {FORMAT}: upgrade rollsight"
        )
    return metadata


def _making() -> dict[str, Any]:
    import torch  # here: reading a run needs no torch, and importing it takes seconds

    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "command": list(sys.argv),
        "versions": versions,
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
        },
    }


def jsonable(value: Any, *, non_finite_as_null: bool = False) -> Any:
    """The value as strict JSON can hold it.

    NumPy and torch values become numbers and lists, paths and anything unknown become text. JSON has no NaN and no
    infinity: they become the texts "nan", "inf" and "-inf", which `float` reads back, or null where asked for.
    """

    def convert(value: Any) -> Any:
        match value:
            case None | bool() | str():
                return str(value) if isinstance(value, str) else value  # str: an np.str_ is one too
            case enum.Enum():
                return convert(value.value)
            case int():
                return int(value)
            case float() | decimal.Decimal():
                return float(value) if math.isfinite(value) else None if non_finite_as_null else str(float(value))
            case np.generic():
                return convert(value.item())
            case Mapping():
                return {str(key): convert(item) for key, item in value.items()}
            case list() | tuple() | set() | frozenset() | range():
                return [convert(item) for item in value]
            case datetime.date():
                return value.isoformat()
        if hasattr(value, "tolist"):  # arrays and tensors
            return convert(value.tolist())
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: convert(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if callable(value) and hasattr(value, "__qualname__"):
            return f"{value.__module__}.{value.__qualname__}"  # a class or function: its address would say nothing
        return str(value)

    return convert(value)
