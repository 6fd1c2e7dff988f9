"""The notebooks of the documentation run from the first cell to the last, each in a process of its own."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_the_stored_one_shows(path, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # of whatever ran before: a notebook shows its figures itself
    stored = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    for cell, shown in zip(notebook.cells, stored.cells, strict=True):
        if cell.cell_type == "code":
            # Numbers may differ in another build of PyTorch; tables and pictures stay where they are.
            assert kinds(cell) == kinds(shown), cell.source


def kinds(cell):
    """What a cell shows besides warnings: sorted kinds, such as image/png."""
    outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return sorted(kind for output in outputs for kind in output.get("data", {"text": ""}) if kind != "text/plain")


def test_the_notebooks_are_there():
    assert len(NOTEBOOKS) >= 2
