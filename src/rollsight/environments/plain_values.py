"""Arguments as values that JSON can hold, and back: exactly, or not at all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_TAGS = ("float", "tuple", "dict", "array", "scalar", "dtype")  # each the only key of what it marks, but "array"


class NotPlain(Exception):
    """A value that JSON cannot express, in words."""


def encode(value: Any) -> Any:
    """The value as strict JSON can hold it, marked where JSON has no such type: tuples, arrays, infinities, dtypes.

    Raises `NotPlain` for functions and other objects.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, np.dtype) and value.kind in "biuf":
        return {"dtype": value.name}
    if isinstance(value, type) and issubclass(value, np.number | np.bool_):
        return {"scalar": np.dtype(value).name}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        return {"array": encode(value.tolist()), "dtype": value.dtype.name}
    if type(value) is list:
        return [encode(item) for item in value]
    if type(value) is tuple:
        return {"tuple": [encode(item) for item in value]}
    if type(value) is dict:
        if all(type(key) is str for key in value) and not any(tag in value for tag in _TAGS):
            return {key: encode(item) for key, item in value.items()}
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    name = getattr(value, "__name__", None)
    raise NotPlain(f"the function {name}" if callable(value) and name else f"a {type(value).__name__}")


def decode(value: Any) -> Any:
    """What `encode` was given. Raises ValueError, TypeError or KeyError for JSON that it did not make."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return np.array(decode(value["array"]), _numeric(value["dtype"]))[()]  # [()]: a scalar for no dimensions
    match value:
        case {"float": str(text)}:
            return float(text)
        case {"tuple": list(items)}:
            return tuple(decode(item) for item in items)
        case {"dict": list(pairs)}:
            return {decode(key): decode(item) for key, item in pairs}
        case {"dtype": str(name)}:
            return _numeric(name)
        case {"scalar": str(name)}:
            return _numeric(name).type
    return {key: decode(item) for key, item in value.items()}


def _numeric(name: str) -> np.dtype[Any]:
    dtype = np.dtype(name)
    if dtype.kind not in "biuf":
        raise ValueError(f"{name!r} is not a number's type")
    return dtype
