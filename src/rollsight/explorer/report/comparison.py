"""Runs next to each other in a report: arms by seed where they can be compared, else one curve for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollsight.errors import RollsightError
from rollsight.escaping import plain_html
from rollsight.explorer.comparing import Compared, compared
from rollsight.explorer.figures.comparison import learning
from rollsight.explorer.figures.curves import Line, Strip, over_rounds
from rollsight.explorer.pages.compare.arms import spelt
from rollsight.explorer.reading import Reading
from rollsight.explorer.report.document import Figures, table
from rollsight.explorer.tables import column, performance
from rollsight.explorer.theme import SERIES, number


def compared_runs(reading: Reading, names: Sequence[str], figures: Figures) -> str:
    """HTML: learning curves and what they end with. The first run's arm is what the others are compared with."""
    folders = tuple(reading.path(name) for name in names)
    try:
        found = compared(folders, tuple(reading.token(name) for name in names), None)
    except RollsightError as error:  # without returns, or without a round that all have
        return _curves(reading, names, figures, str(error))
    named = f'<p class="soft small">Runs: {plain_html(", ".join(names))}.</p>'
    return "\n".join([*(_arms(one, figures) for one in found), named])


def _arms(one: Compared, figures: Figures) -> str:
    arms = one.comparison
    means = {arm.name: (arms.rounds, arm.mean, arm.half_width) for arm in arms.arms}
    seeds = max(arm.runs for arm in arms.arms)
    caption = f"{arms.env}: " + (
        "mean of each arm with its 95 % interval over seeds; below, the difference on the same seed."
        if seeds > 1
        else "one run each, so no interval can be given; below, the difference on the same seed."
    )
    drawn = figures.place(learning(one.curves, means, arms.baseline, arms.measure), caption)
    rows = [
        [
            plain_html(arm.name),
            number(arm.runs),
            spelt(arm.final),
            spelt(arm.area),
            "–" if arm.final_difference is None else spelt(arm.final_difference, signed=True),
        ]
        for arm in arms.arms
    ]
    notes = "".join(f'<p class="soft small">{plain_html(text[:1].upper() + text[1:])}.</p>' for text in arms.notes)
    gain = f"final, gain over {arms.baseline}"
    return drawn + table(["arm", "runs", "final", "area", gain], rows, (1, 2, 3, 4)) + notes


def _curves(reading: Reading, names: Sequence[str], figures: Figures, why: str) -> str:
    lines, rows = [], []
    for index, name in enumerate(names):
        rounds = reading.rounds(name)
        values = performance(rounds)[1]
        lines.append(Line(name, column(rounds, "round"), values, colour=SERIES[index % len(SERIES)]))
        known = values[np.isfinite(values)]
        final = float(known[-max(1, len(known) // 10) :].mean()) if len(known) else None
        rows.append([plain_html(name), plain_html(reading.run(name).arm), number(final)])
    measure = performance(reading.rounds(names[0]))[0]
    drawn = figures.place(over_rounds([Strip(measure, lines)], height=280), f"Learning curves, one run each: {why}.")
    return drawn + table(["run", "arm", "final"], rows, (2,))
