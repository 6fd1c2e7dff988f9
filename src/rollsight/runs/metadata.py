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
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rollsight.errors import RollsightError
from rollsight.runs.digests import SELF, digest_of_metadata
from rollsight.runs.layout import FORMAT, METADATA, read_bytes, whole_file
from rollsight.runs.schema import SCHEMA

# What decides results, or how they are stored.
_PACKAGES = (
    *("rollsight", "torch", "numpy", "stable-baselines3", "sb3-contrib", "gymnasium"),
    *("ale-py", "minigrid", "highway-env", "box2d", "Box2D", "envpool", "jax", "jaxlib"),
    *("transformers", "tokenizers", "peft", "trl", "accelerate", "datasets"),
    *("safetensors", "pyarrow", "duckdb"),
)

# The entries that readers rely on, and what they are where they are there; None is always possible.
_TYPES: dict[tuple[str, ...], type | tuple[type, ...]] = {
    ("schema",): int,
    ("env",): str,
    ("host",): str,
    ("env_kwargs",): dict,
    ("max_episode_steps",): int,
    ("n_envs",): int,
    ("arm",): str,
    ("algo",): str,
    ("created",): str,
    ("continued",): list,
    ("versions",): dict,
    ("wrappers",): list,
    ("settings",): dict,
    ("settings", "gamma"): (int, float),
    ("settings", "gae_lambda"): (int, float),
    ("run_settings",): dict,
    ("run_settings", "options"): dict,
    ("run_settings", "options", "target"): str,
    ("targets",): list,
    ("digests",): dict,
    ("digests", "from_round"): int,
}


def is_language(metadata: Mapping[str, Any]) -> bool:
    """Whether the records of a run with this metadata are completions of a language model."""
    return str(metadata.get("host", "")).partition(" ")[0] in ("trl", "rollsight")


def describe_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a run made here and now: what every run says about its making, and the given entries.

    Raises:
        RollsightError: a given entry has a name that is taken.
    """
    made = _making()
    taken = sorted(made.keys() & given.keys())
    if taken:
        raise RollsightError(f"the metadata name {taken[0]!r} is written by the run folder itself: choose another")
    return {**made, **jsonable(given)}


def write_metadata(run: Path, metadata: dict[str, Any]) -> None:
    """Write `run.json`, with the digest of what it holds."""
    whole = {**metadata, SELF: digest_of_metadata(metadata)}
    with whole_file(run / METADATA) as temporary:
        temporary.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_metadata(run: Path) -> dict[str, Any]:
    """The content of `run.json`, without its digest; a warning where that is another one's.

    Raises:
        RollsightError: it is damaged, or written by a later version of rollsight.
    """
    path = run / METADATA
    metadata, as_written = parse_metadata(path, read_bytes(path))
    if not as_written:
        warnings.warn(f"{path} was changed since rollsight wrote it: its entries are used as they stand", stacklevel=3)
    return metadata


def parse_metadata(path: Path, content: bytes) -> tuple[dict[str, Any], bool]:
    """What `read_metadata` returns, and whether it is as it was written (True too where no digest says otherwise)."""
    try:
        metadata = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RollsightError(f"{path} is damaged ({error}): restore or repair it, the tables are intact") from error
    if not isinstance(metadata, dict) or type(metadata.get("format")) is not int:
        raise RollsightError(f"{path} is not the metadata of a rollsight run (it has no format number)")
    if metadata["format"] > FORMAT:
        raise RollsightError(
            f"{path.parent} has run format {metadata['format']} and this rollsight reads up to {FORMAT}: upgrade "
            "rollsight"
        )
    for names, types in _TYPES.items():
        value: Any = metadata
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None and (not isinstance(value, types) or (isinstance(value, bool) and types is not bool)):
            raise RollsightError(
                f"{path} is damaged ({'.'.join(names)} is {_shown(value)}): restore or repair it, the tables are intact"
            )
    digest = metadata.pop(SELF, None)
    # Without a digest a run of an earlier version is as good as it was; one that should have a digest is not.
    expected = digest_of_metadata(metadata) if digest is not None or "digests" in metadata else None
    return metadata, digest == expected


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 40 else text[:37] + "..."


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
        "schema": SCHEMA,
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
