"""Colours and places of the arms, for the pictures and the page of an intervention."""

from __future__ import annotations

from rollsight.analysis.drawing import AMBER, BLUE, GREY
from rollsight.analysis.intervention.arms import BASELINE, Intervention
from rollsight.arrays import Floats

COLOURS = {"selection": BLUE, "listed": BLUE, "random": GREY, "permuted": AMBER}


def changes(result: Intervention, arm: str) -> list[Floats]:
    """By round, the differences (orders, episodes) in return to the unfiltered replay."""
    return [one.arms[arm].returns - one.arms[BASELINE].returns for one in result.rounds]


def place(index: int, arms: int, round: int) -> float:
    """Where an arm's box stands on the axis of rounds, which are at 0, 1, 2, ..."""
    return round + (index - (arms - 1) / 2) * 0.8 / arms
