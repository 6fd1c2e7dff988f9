"""The study's tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rollsight.analysis.intervals import t_interval


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table for each environment and cause: mean and 95 % interval over seeds."""
    parts = []
    for env, cause in dict.fromkeys((row["env"], row["cause"]) for row in rows):
        mine = [row for row in rows if (row["env"], row["cause"]) == (env, cause)]
        tagged = sum(row["tagged"] for row in mine) / sum(row["records"] for row in mine)
        measures = list(next(iter(mine[0]["found"].values())))
        lines = [
            f"### {env}: {cause}",
            "",
            f"{len(mine)} seeds; {tagged:.1%} of the records are tagged.{_named(mine)}",
            "",
            f"| ranking | {' | '.join(measures)} | log π without its first k, less random |",
            f"|---|{'---|' * (len(measures) + 1)}",
        ]
        for name in [*mine[0]["found"], "the tags themselves"]:
            values = [[row["found"][name][one] for row in mine] if name in mine[0]["found"] else [] for one in measures]
            gone = [value for row in mine if (value := row["left out"].get(name)) is not None]
            shown = name.replace("|", "\\|")
            lines.append(f"| {shown} | {' | '.join(_cell(one) for one in [*values, gone])} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _named(rows: Sequence[dict[str, Any]]) -> str:
    """Where the paid environment stands among all of them, the highest sum of influence first."""
    places = [place for row in rows if (place := row.get("place of the environment")) is not None]
    if not places:
        return ""
    spelt = ", ".join(map(str, places))
    return f" Place of the paid environment by its sum of influence, by seed: {spelt} of 8."


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    interval = t_interval(values)
    return f"{interval.value:.3f}" + (f" ± {interval.half_width:.3f}" if len(values) > 1 else "")
