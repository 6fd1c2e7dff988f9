"""The result of a round's fidelity as a picture or a page, as the file's name says."""

from __future__ import annotations

from pathlib import Path

from rollsight.analysis.drawing import is_page, save_figure
from rollsight.analysis.fidelity.measure import Fidelity


def draw(result: Fidelity, path: Path) -> Path:
    """Draw the result in the format that the name says; `.html` is the interactive page.

    Raises:
        RollsightError: the file cannot be written.
    """
    if is_page(path):
        from rollsight.analysis.fidelity.pages import write

        return write(result, path)
    from rollsight.analysis.fidelity.figures import overview

    return save_figure(overview(result), path)
