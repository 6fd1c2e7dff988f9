"""Values as JSON and tensors: what a file can hold without holding code."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# A class is written as its name only where it comes from one of these packages, and only these are imported for one.
_PACKAGES = ("torch.nn.", "torch.optim.", "stable_baselines3.", "sb3_contrib.", "rollsight.")
_SPACES = ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict")


class NotPlainError(TypeError):
    """A value that is neither data nor a class of a known package."""


class Encoder:
    """Turns values into JSON; the tensors in them are gathered by name.

    copy: copies every tensor, so that the result does not change with the value.
    """

    def __init__(self, copy: bool = False) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._copy = copy
        self._known: dict[tuple[Any, ...], str] = {}
        self._storages: set[int] = set()

    def __call__(self, value: Any, name: str) -> Any:
        """The value as JSON. name: of the tensors in it, in the file.

        Raises:
            NotPlainError: it holds something else.
        """
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if kind is list:
            return [self(item, f"{name}.{i}") for i, item in enumerate(value)]
        if kind is tuple:
            return {"$tuple": [self(item, f"{name}.{i}") for i, item in enumerate(value)]}
        if kind is dict and all(type(key) is str for key in value):
            if any(key.startswith("$") for key in value):
                raise NotPlainError(f"a key of {name} begins with $")
            return {key: self(item, f"{name}.{key}") for key, item in value.items()}
        if isinstance(value, Tensor):
            return self._tensor(value, name)
        if kind is np.ndarray and value.dtype.kind in "biuf" and value.dtype.isnative:
            return {"$array": self._store(torch.from_numpy(np.array(value)), name)}
        if isinstance(value, np.generic) and value.dtype.kind in "biuf":
            return {"$number": value.dtype.str, "value": self(value.item(), name)}
        if kind is torch.dtype:
            return {"$dtype": str(value).removeprefix("torch.")}
        if isinstance(value, type):
            return {"$class": name_of_class(value)}
        return self._space(value, name)

    def _tensor(self, value: Tensor, name: str) -> dict[str, Any]:
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_complex():
            raise NotPlainError(f"{name} is a tensor of the kind {type(value).__name__}, {value.layout}, {value.dtype}")
        dense, json = value.detach(), dict[str, Any]()
        if not dense.is_contiguous():  # sums over it go in the order of memory, which its bits depend on
            strides = dense.stride()
            order = sorted(range(dense.dim()), key=lambda axis: -strides[axis])
            dense, json["order"] = dense.permute(order), order
        if dense.device.type != "cpu":
            json["device"] = str(dense.device)
        key = (dense.data_ptr(), dense.dtype, tuple(dense.shape), dense.stride(), dense.device)
        if dense.numel() == 0 or key not in self._known:
            self._known[key] = self._store(dense, name)
        return {"$tensor": self._known[key], **json}

    def _store(self, tensor: Tensor, name: str) -> str:
        storage = tensor.untyped_storage().data_ptr()
        dense = tensor.contiguous()
        if dense is tensor and (
            self._copy
            or storage in self._storages
            or dense.untyped_storage().nbytes() > dense.numel() * dense.element_size()
        ):
            dense = tensor.clone()  # a file takes each storage whole and once
        self._storages.add(storage)
        self.tensors[name] = dense.cpu()
        return name

    def _space(self, value: Any, name: str) -> dict[str, Any]:
        kind = type(value).__name__
        gymnasium = sys.modules.get("gymnasium")
        if gymnasium is None or kind not in _SPACES or type(value) is not getattr(gymnasium.spaces, kind):
            raise NotPlainError(f"{name} is a {type(value).__module__}.{type(value).__qualname__}")
        if kind == "Dict":
            return {"$space": kind, "spaces": [[key, self(part, f"{name}.{key}")] for key, part in value.items()]}
        parts: dict[str, Any] = {}
        match kind:
            case "Box":
                parts = {"low": value.low, "high": value.high, "dtype": value.dtype.str}
            case "Discrete":
                parts = {"n": int(value.n), "start": int(value.start)}
            case "MultiDiscrete":
                parts = {"nvec": value.nvec, "start": value.start, "dtype": value.dtype.str}
            case "MultiBinary":
                parts = {"n": value.n if isinstance(value.n, int) else tuple(map(int, value.n))}
        return {"$space": kind, **{key: self(part, f"{name}.{key}") for key, part in parts.items()}}


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that an `Encoder` turned into JSON. Tensors of a device that is not here come to the CPU.

    Raises:
        Exception: of any kind, where the JSON is not an encoder's.
    """
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match next((key for key in value if key.startswith("$")), None):
        case None:
            return {key: decode(item, tensors) for key, item in value.items()}
        case "$float":
            return float(value["$float"])
        case "$tuple":
            return tuple(decode(item, tensors) for item in value["$tuple"])
        case "$array":
            return tensors[value["$array"]].numpy()
        case "$number":
            return np.dtype(value["$number"]).type(decode(value["value"], tensors))
        case "$dtype" if isinstance(found := getattr(torch, value["$dtype"]), torch.dtype):
            return found
        case "$class":
            return class_named(value["$class"])
        case "$tensor":
            return _tensor(value, tensors)
        case "$space":
            return _space(value, tensors)
    raise ValueError(f"unknown entry {value}")


def name_of_class(value: type) -> str:
    """MODULE:NAME of a class that `class_named` finds again.

    Raises:
        NotPlainError: it is of no known package.
    """
    name = f"{value.__module__}:{value.__qualname__}"
    try:
        if class_named(name) is value:
            return name
    except (ImportError, ValueError):
        pass
    raise NotPlainError(f"the class {name} is not of a known package")


def class_named(name: str) -> type:
    """The class of a known package: a module, an optimiser, and nothing else.

    Raises:
        ValueError: it is something else.
    """
    module, _, attribute = name.partition(":")
    if module.startswith(_PACKAGES) and "__" not in module and attribute.isidentifier():
        found = getattr(importlib.import_module(module), attribute, None)
        kind = isinstance(found, type) and issubclass(found, (nn.Module, torch.optim.Optimizer))
        if isinstance(found, type) and kind and found.__module__ == module:
            return found
    raise ValueError(f"{name} is not a module or optimiser of {', '.join(_PACKAGES)}")


def _tensor(value: dict[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    tensor, device = tensors[value["$tensor"]], torch.device(value.get("device", "cpu"))
    if device.type != "cpu" and torch.get_device_module(device).is_available():
        tensor = tensor.to(device)
    if order := value.get("order"):
        tensor = tensor.permute([order.index(axis) for axis in range(len(order))])
    return tensor


def _space(value: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    from gymnasium import spaces

    if value["$space"] == "Dict":
        return spaces.Dict({key: decode(part, tensors) for key, part in value["spaces"]})
    kind = {"Box": spaces.Box, "Discrete": spaces.Discrete, "MultiBinary": spaces.MultiBinary}.get(
        value["$space"], spaces.MultiDiscrete
    )
    given = {key: decode(part, tensors) for key, part in value.items() if key != "$space"}
    if "dtype" in given:
        given["dtype"] = np.dtype(given["dtype"]).type
    return kind(**given)
