"""`rollsight demo`: two real runs, made once, and the explorer on them."""

import sys
from types import ModuleType

import pytest

from rollsight import runs
from rollsight.cli import demo, main

pytest.importorskip("peft", reason="language models need PEFT (pip install 'rollsight[llm]')")


@pytest.mark.filterwarnings("ignore")
def test_two_runs_are_made_once_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "_ROUNDS", 1)
    assert main(["demo", "--out", str(tmp_path), "--no-view"]) == 0
    paths = [tmp_path / "demo-frozenlake", tmp_path / "demo-language"]
    lake, language = map(runs.open, paths)
    assert (lake.rounds, language.rounds, lake.snapshot_rounds) == ([1], [1], [1])
    assert {"obs", "score_return", "episode_start"} <= set(lake.records(1).column_names)
    assert {"completion", "score_sequence", "reward"} <= set(language.records(1).column_names)
    assert "rollsight view" in capsys.readouterr().out

    made = [(path / "run.json").stat().st_mtime_ns for path in paths]
    shown = []
    explorer = ModuleType("rollsight.explorer")
    explorer.serve = lambda folders, **how: shown.append((folders, how))
    monkeypatch.setitem(sys.modules, "rollsight.explorer", explorer)
    assert main(["demo", "--out", str(tmp_path), "--port", "8123"]) == 0
    assert shown == [(paths, {"port": 8123})]
    assert [(path / "run.json").stat().st_mtime_ns for path in paths] == made
    assert "is there" in capsys.readouterr().out


def test_another_folder_is_not_touched(tmp_path, capsys):
    (tmp_path / "demo-frozenlake").mkdir()
    (tmp_path / "demo-frozenlake" / "notes.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path), "--no-view"]) == 1
    assert "is not a run: choose another --out" in capsys.readouterr().err
    assert (tmp_path / "demo-frozenlake" / "notes.txt").read_text() == "mine"
