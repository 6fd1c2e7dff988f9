"""Interactive pages: whole, readable offline, and safe whatever the text in them."""

import os
import re
from pathlib import Path

import plotly.graph_objects as go
import pytest

from rollsight.analysis.drawing import STILL, check_figure, is_page
from rollsight.analysis.page import Panel, band, dress, short, write_page
from rollsight.errors import RollsightError


def panel(name="one", caption="What <is> seen."):
    return Panel(name, f"Heading of {name}", caption, dress(go.Figure(go.Scatter(x=[1, 2], y=[0.25, float("nan")]))))


def test_a_page_holds_its_figures_and_the_script_once(tmp_path):
    path = write_page(tmp_path / "page.html", "A & B", "</script><b>lead", [panel("one"), panel("two")])
    text = path.read_text("utf-8")
    assert "A &amp; B" in text
    assert "&lt;/script&gt;&lt;b&gt;lead" in text
    assert "What &lt;is&gt; seen." in text
    assert all(f'id="{name}"' in text for name in ("one", "two"))
    assert text.count("Plotly.newPlot(") >= 2
    assert len(text) < 8e6  # one copy of the script
    assert "<script src" not in text
    assert len(re.findall(r'"showSendToCloud":\s*false', text)) == 2
    assert re.search(r"\[0\.25,\s*null\]", text)  # JSON knows no NaN
    again = write_page(tmp_path / "again.html", "A & B", "</script><b>lead", [panel("one"), panel("two")])
    assert again.read_text("utf-8") == text
    assert sorted(os.listdir(tmp_path)) == ["again.html", "page.html"]


def test_a_page_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(RollsightError, match="could not be written"):
        write_page(tmp_path / "none" / "page.html", "", "", [panel()])


def test_the_names_of_figures():
    for name in ("a.png", "a.PDF", "a.svg", "a.html"):
        check_figure(Path(name))
    assert is_page(Path("a.HTML"))
    with pytest.raises(RollsightError, match=r"a\.gif is not a figure file: end it in \.png, \.pdf, \.svg, \.html"):
        check_figure(Path("a.gif"))
    with pytest.raises(RollsightError, match=r"end it in \.png, \.pdf, \.svg$"):
        check_figure(Path("a.html"), STILL)


def test_bands_and_short_values():
    grey = band([1, 2], [0.0, 1.0], [2.0, 3.0], "range")
    assert (list(grey.x), list(grey.y)) == ([1, 2, 2, 1], [0.0, 1.0, 3.0, 2.0])
    assert short([0.123456, 2]) == "[0.1235, 2]"
    assert short(list(range(20))) == "[0, 1, 2, 3, 4, 5, 6, 7, …]"
