"""Public names that are imported at first use: reading a run folder needs no torch, whose import takes seconds."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def at_first_use(package: str, homes: Mapping[str, str | None]) -> Callable[[str], Any]:
    """A package's `__getattr__`. homes: each public name -> the module of the package that defines it; None for a
    module itself."""

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        return import_module(f"{package}.{name}") if home is None else getattr(import_module(f"{package}.{home}"), name)

    return get
