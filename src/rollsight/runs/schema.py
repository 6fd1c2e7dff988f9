"""What the columns of a run folder are called and mean, whichever host writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEMA = 2  # `schema` in run.json; runs without it are of 1

# What columns were called in schema 1: host -> table -> old name -> new one.
RENAMED: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "trl": {"records": {"tokens": "length"}},
    "rollsight": {
        "records": {
            "tokens": "token_ids",
            "log_probs": "token_log_probs",
            "values": "token_values",
            "advantages": "token_advantages",
        },
        "rounds": {"return_mean": "reward_mean"},
    },
}


def renamed(metadata: Mapping[str, Any], table: str) -> Mapping[str, str]:
    """Old name -> new one of the columns that a run with this metadata may hold under an old name. A run that was
    begun in an earlier schema and continued in this one has files of both."""
    if metadata.get("schema", 1) >= SCHEMA:
        return {}
    host = str(metadata.get("host", "")).partition(" ")[0]
    return RENAMED.get(host, {}).get(table, {})
