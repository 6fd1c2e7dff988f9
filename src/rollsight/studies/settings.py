"""The settings that all runs of a study share, in its folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rollsight.errors import RollsightError
from rollsight.runs import whole_file

SETTINGS = "settings.json"


def keep_settings(folder: Path, settings: Any, study: str, *, growing: Collection[str] = ()) -> None:
    """Write a study's settings, a dataclass, into its folder.

    study: its name on the command line; growing: names of settings that may change later.

    Raises:
        RollsightError: the folder is a study with others.
    """
    path, mine = folder / SETTINGS, asdict(settings)
    if path.exists():
        stored = _flat(stored_settings(folder, study))
        if not stored.keys() & mine.keys():
            raise RollsightError(f"{path} is not of a study: choose another --out")
        for name, value in _flat(mine).items():
            if name not in growing and stored.get(name, value) != value:
                raise RollsightError(
                    f"{folder} was started with {name} {stored[name]}, not {value}: give the same settings, or another "
                    "--out"
                )
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(mine, indent=2) + "\n", "utf-8")


def stored_settings(folder: Path, study: str) -> dict[str, Any]:
    """What `keep_settings` wrote. study: its name on the command line.

    Raises:
        RollsightError: the folder holds none.
    """
    path = folder / SETTINGS
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RollsightError(
            f"{folder} holds no study with its {SETTINGS}: run `rollsight study {study} --out {folder}` first"
        ) from error
    return found


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, with those of groups."""
    groups = [value for value in settings.values() if isinstance(value, dict)]
    return {
        name: value for group in (settings, *groups) for name, value in group.items() if not isinstance(value, dict)
    }
