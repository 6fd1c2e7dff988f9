"""The scatter of a diagnosis as a page of its own: point at a record to see what it is."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from rollsight.analysis.diagnosis.figures import BOTTOM, RANDOM, TOP, WRONG, points
from rollsight.analysis.diagnosis.round import DiagnosedRecord, Diagnosis
from rollsight.runs import whole_file

_WIDTH, _HEIGHT, _MARGIN = 900, 600, 48
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 24px auto; max-width: {width}px; color: #222 }}
svg {{ width: 100%; border: 1px solid #ddd }} line {{ stroke: #bbb }} text {{ font-size: 12px; fill: #555 }}
circle {{ opacity: .75; cursor: pointer }} circle:hover {{ opacity: 1; stroke: #000; stroke-width: 2 }}
.bottom {{ fill: {bottom} }} .top {{ fill: {top} }} .random {{ fill: {random} }}
.wrong {{ stroke: {wrong}; stroke-width: 2 }}
</style>
<h1 style="font-size: 18px">{title}</h1>
<p>{summary}</p>
<svg viewBox="0 0 {width} {height}">
<line x1="{x0:.1f}" x2="{x0:.1f}" y1="0" y2="{height}"/><line y1="{y0:.1f}" y2="{y0:.1f}" x1="0" x2="{width}"/>
<text x="{right}" y="{y0:.1f}" dy="-6" text-anchor="end">influence (asinh scale)</text>
<text x="{x0:.1f}" y="14" dx="6">A_bar * A_hat (asinh scale)</text>
{circles}
</svg>
<p>Red: lowest, blue: highest, grey: random records; a pink ring: the sign of A_hat is wrong.</p>
</html>
"""


def draw_scatter_page(diagnosis: Diagnosis, path: Path) -> Path:
    """Write the page: one HTML file that needs nothing else. Hovering over a record tells where it stands."""
    one = diagnosis.correlation
    x, y = (_scaled(column) for column in points(diagnosis.records))
    across, down = _MARGIN + (_WIDTH - 2 * _MARGIN) * (x + 1) / 2, _MARGIN + (_HEIGHT - 2 * _MARGIN) * (1 - y) / 2
    circles = [
        f'<circle class="{_kind(record)}" cx="{cx:.1f}" cy="{cy:.1f}" r="5">'
        f"<title>{escape(_tell(record))}</title></circle>"
        for record, cx, cy in zip(diagnosis.records, across, down, strict=True)
    ]
    page = _PAGE.format(
        title=escape(f"{diagnosis.env}, round {diagnosis.round}: influence and advantages"),
        summary=escape(
            f"Spearman of influence with A_bar * A_hat on the random sample: {one.value:.2f} "
            f"[{one.low:.2f}, {one.high:.2f}], resampled by {diagnosis.unit}. {diagnosis.branches} branches; "
            f"{diagnosis.how}."
        ),
        width=_WIDTH,
        height=_HEIGHT,
        right=_WIDTH - 8,
        x0=_WIDTH / 2,
        y0=_HEIGHT / 2,
        bottom=BOTTOM,
        top=TOP,
        random=RANDOM,
        wrong=WRONG,
        circles="\n".join(circles),
    )
    with whole_file(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path


def _scaled(values: Any) -> Any:
    """Values as numbers from -1 to 1 with 0 in the middle, spread out around it."""
    size = np.abs(values[values != 0])
    spread = np.arcsinh(values / np.median(size)) if len(size) else values
    return spread / max(np.abs(spread).max(initial=0.0), 1e-12)


def _kind(record: DiagnosedRecord) -> str:
    group = next(name for name in ("bottom", "top", "random") if name in record.groups)
    return f"{group} wrong" if record.mismatch else group


def _tell(r: DiagnosedRecord) -> str:
    seen = f"obs {r.obs}\n" if not isinstance(r.obs, list) or len(r.obs) <= 12 else ""
    sign = "within two standard errors of 0" if r.mismatch is None else "wrong sign" if r.mismatch else "right sign"
    return (
        f"env {r.env}, step {r.step} (episode {r.episode}, its step {r.episode_step})\n{seen}action {r.action}\n"
        f"influence {r.score:.4g}, fifth {r.quintile + 1}\nA_hat {r.a_hat:.4g}, A_bar {r.a_bar:.4g} ± "
        f"{r.a_bar_error:.2g}: {sign}"
    )
