"""Arm against arm: curves, gains, and what interventions found."""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
import numpy as np

from rollsight.analysis.intervals import Interval
from rollsight.analysis.learning_curves import Arm, describe_rounds
from rollsight.explorer import components
from rollsight.explorer.comparing import Compared, interventions
from rollsight.explorer.context import Context
from rollsight.explorer.figures import comparison as figures
from rollsight.explorer.theme import number, percent
from rollsight.studies.metrics import Contrast

_SAVED = {
    "se_ave": ("SE, mean", "Rounds saved to the levels that the baseline reached: 30 % is 30 % fewer."),
    "se_peak": ("SE, best", "Rounds saved to the baseline's best level."),
    "rt_paper": ("RT", "Time saved to the baseline's best level, as a share of its whole time."),
    "rt_peak": ("RT, best", "The same, as a share of the baseline's time to that level."),
    "unreached": ("Unreached", "Levels of the baseline that the arm never reached: they count as reached last."),
}


def cards(one: Compared, index: int) -> list[Any]:
    """Curves and gains of one environment. index: makes the ids of figures differ."""
    found = one.comparison
    means = {arm.name: (found.rounds, arm.mean, arm.half_width) for arm in found.arms}
    others = any(arm.final_difference is not None for arm in found.arms)
    note = f"Mean of each arm with its 95 % interval over seeds, over {describe_rounds(found.rounds.tolist())}"
    note += "; below, the difference on the same seed." if others else "."
    curves = components.graph(
        f"compare-curves-{index}", figures.learning(one.curves, means, found.baseline, found.measure)
    )
    parts = [components.card(components.text_of(found.env), curves, note=note, mb="sm")]
    notes = [components.text_of(f"{text[:1].upper()}{text[1:]}.") for text in found.notes]
    told = [dmc.Text(text, size="xs", c="dimmed") for text in notes]
    drawn = [components.graph(f"compare-gains-{index}", _gains(one))] if others else []
    title = f"Gains over {components.text_of(found.baseline)}" if others else "Final return and area"
    single = any(arm.final.n == 1 for arm in found.arms)
    what = "Final return: mean over the last tenth of the rounds. Area: mean over all. 95 % intervals over seeds"
    what += ", none for a single seed." if single else "."
    return [*parts, components.card(title, _table(one), *drawn, *told, note=what, mb="sm")]


def intervention_cards(context: Context, names: list[str]) -> list[Any]:
    """Box plots of what is kept of each run; how to make some where there is nothing."""
    parts: list[Any] = []
    for name in names:
        for number_of, (kept, result) in enumerate(interventions(context.reading.path(name)).items()):
            by_round, by_arm = figures.intervention(result)
            identity = f"compare-intervention-{len(parts)}-{number_of}"
            boxes = dmc.SimpleGrid(
                [components.graph(f"{identity}-rounds", by_round), components.graph(f"{identity}-arms", by_arm)],
                cols={"base": 1, "md": 2},
            )
            note = (
                f"Replays without {components.text_of(result.rule)}, {result.semantic}, against the unfiltered replay: "
                f"{result.orders} minibatch orders, {result.episodes} common episodes."
            )
            parts.append(
                components.card(f"Intervention: {name}, {components.text_of(kept)}", boxes, note=note, mb="sm")
            )
    return parts


def _table(one: Compared) -> Any:
    others = any(arm.final_difference is not None for arm in one.comparison.arms)
    head: list[tuple[str, str | None]] = [("Arm", None), ("Runs", None), ("Final return", None), ("Area", None)]
    if others:
        head += [("Final, gain", "On the same seeds."), ("Area, gain", "On the same seeds.")]
        head += [(name, hint) for name, hint in _SAVED.values()]
    rows = [_row(arm, one.contrasts.get(arm.name), others) for arm in one.comparison.arms]
    return dmc.TableScrollContainer(
        dmc.Table(
            [
                dmc.TableThead(dmc.TableTr([_head(name, hint) for name, hint in head])),
                dmc.TableTbody([dmc.TableTr([dmc.TableTd(cell) for cell in row]) for row in rows]),
            ],
            className="rs-arms",
        ),
        minWidth=700,
    )


def _head(name: str, hint: str | None) -> Any:
    return dmc.TableTh(
        dmc.Tooltip(dmc.Text(name, size="xs", fw=600, span=True), label=hint, multiline=True, w=240) if hint else name
    )


def _row(arm: Arm, contrast: Contrast | None, others: bool) -> list[Any]:
    row = [components.text_of(arm.name), number(arm.runs), spelt(arm.final), spelt(arm.area)]
    if others:
        row += ["–" if one is None else spelt(one, signed=True) for one in (arm.final_difference, arm.area_difference)]
        row += ["–" if contrast is None else _share(contrast.pairs[measure]) for measure in _SAVED]
    return row


def spelt(interval: Interval, signed: bool = False) -> str:
    """A mean with the half-width of its interval."""
    sign = "+" if signed and interval.value > 0 else ""
    width = "" if np.isnan(interval.half_width) else f" ± {number(interval.half_width, 2)}"
    return f"{sign}{number(interval.value)}{width}"


def _share(interval: Interval) -> str:
    if np.isnan(interval.value):
        return "–"
    width = "" if np.isnan(interval.half_width) else f" ± {percent(round(interval.half_width, 3))}"
    return f"{percent(round(interval.value, 3))}{width}"


def _gains(one: Compared) -> Any:
    arms = one.comparison.arms
    final = {arm.name: arm.final_difference for arm in arms if arm.final_difference is not None}
    area = {arm.name: arm.area_difference for arm in arms if arm.area_difference is not None}
    return figures.gains({"final return": final, "area": area})
