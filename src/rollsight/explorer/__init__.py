"""The explorer: a local web app over run folders. It reads them only through `rollsight.runs`, and writes nothing."""

from __future__ import annotations

from rollsight.errors import MissingExtra

try:
    import dash as _dash  # noqa: F401
    import dash_ag_grid as _dash_ag_grid  # noqa: F401
    import dash_mantine_components as _dash_mantine_components  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtra("the explorer", error.name or "dash", "explorer") from error

from rollsight.explorer.app import create_app
from rollsight.explorer.reading import Reading
from rollsight.explorer.server import Server, serve

__all__ = ["Reading", "Server", "create_app", "serve"]
