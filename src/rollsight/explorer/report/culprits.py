"""The behaviours whose culprits were computed: when they were learnt, what taught them, and the verdict of replays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollsight import runs
from rollsight.escaping import plain_html
from rollsight.explorer.figures.culprits import influence, shares
from rollsight.explorer.pages.culprits import command, name_of, noun
from rollsight.explorer.report.document import Figures, Section, table
from rollsight.explorer.theme import number, percent

_TITLE = "Which rollouts taught it?"
_MOST = 3  # behaviours, those of the newest results
_RECORDS = 8  # of each
_TEXT = 600  # characters of a text


def section(path: Path, language: bool, figures: Figures) -> Section:
    """What is kept of the run's behaviours; nothing is computed here."""
    kept = runs.stored_results(path, "culprits")
    if not kept:
        return Section(_TITLE, f"<p>Not computed yet: <code>{plain_html(command(path, language))}</code></p>")
    folder = runs.results_folder(path, "culprits", "")
    newest = sorted(kept, key=lambda key: (folder / key / "result.json").stat().st_mtime)[-_MOST:]
    return Section(_TITLE, "\n".join(_behaviour(kept[key], figures) for key in reversed(newest)))


def _behaviour(kept: Mapping[str, Any], figures: Figures) -> str:
    check = kept.get("check")
    verdict = check["verdict"] if check else kept.get("note") or "Not checked by replays."
    how = " Drop mode: repack. Counterfactual: replay." if check else ""
    count = f"{number(kept['found'])} {noun(kept)}{'s' * (kept['found'] > 1)}"
    said = f"{verdict[:1].upper()}{verdict[1:].rstrip('.')}."
    return "\n".join(
        [
            f"<h3>{plain_html(str(kept['behaviour']))}</h3>",
            f"<p>{plain_html(said)}<span class='soft'>{plain_html(how)} {plain_html(count)}.</span></p>",
            figures.place(influence(kept), "When it was learnt: what the records of each round did, to first order."),
            *(
                figures.place(shares(name, found), f"By {name}: share of the positive influence, and of the records.")
                for name, found in kept["groups"].items()
                if found
            ),
            _records(kept),
        ]
    )


def _records(kept: Mapping[str, Any]) -> str:
    texts = noun(kept) == "completion"
    rows = []
    for one in kept["records"][:_RECORDS]:
        names = ("prompt", "completion") if texts else ("action",)
        shown = (plain_html(str(one.get(name, "–"))[:_TEXT]) for name in names)
        cells = [plain_html(name_of(one)), number(one["influence"]), percent(one["share"]), number(one.get("reward"))]
        rows.append([*cells, *(f"<pre>{text}</pre>" if texts else text for text in shown)])
    headings = [
        "record",
        "influence",
        "share of positive",
        "reward",
        *(("prompt", "completion") if texts else ["action"]),
    ]
    return table(headings, rows, (1, 2, 3))
