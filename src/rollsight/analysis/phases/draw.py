"""A behaviour's development as a picture or a page, as the file's name says."""

from __future__ import annotations

from pathlib import Path

from rollsight.analysis.drawing import is_page, save_figure
from rollsight.analysis.phases.formation import Development


def draw(result: Development, title: str, path: Path) -> Path:
    """Draw the development in the format that the name says; `.html` is the interactive page.

    Raises:
        RollsightError: the file cannot be written.
    """
    if is_page(path):
        from rollsight.analysis.phases.pages import write

        return write(result, title, path)
    from rollsight.analysis.phases.figures import course

    return save_figure(course(result, title), path)
