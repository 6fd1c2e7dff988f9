"""`rollsight demo`: a planted fault from its finding to training without its records, and the explorer on the runs."""

import sys
from types import ModuleType

import pytest

from rollsight import runs
from rollsight.cli import demo, main
from rollsight.studies.demo import cart, language

pytest.importorskip("peft", reason="language models need PEFT (pip install 'rollsight[llm]')")


@pytest.mark.filterwarnings("ignore")
def test_the_story_is_told_once_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "_ROUNDS", 2)
    monkeypatch.setattr(demo, "_LANGUAGE_ROUNDS", 1)
    assert main(["demo", "--out", str(tmp_path), "--no-view"]) == 0
    said = capsys.readouterr().out
    paths = [cart.folder(tmp_path, kind, 0) for kind in cart.KINDS] + [tmp_path / "demo-language"]
    assert all(
        command in said for command in ("rollsight doctor", "rollsight culprits", "rollsight view", "rollsight top")
    )
    assert "--by env --rounds 8 --draws 2" in said
    assert "environment 5 has" in said
    assert "counterfactual: replay" in said
    faulty, healthy, without, random, texts = map(runs.open, paths)
    assert faulty.snapshot_rounds == [1, 2]
    dropped = "select env, count(*) from records where not kept group by env order by env"
    assert without.sql(dropped).fetchall() == [(5, 2 * cart.STEPS)]
    assert len(random.sql(dropped).fetchall()) == cart.ENVS
    assert random.sql("select distinct dropped from rounds").fetchall() == [(cart.STEPS,)]
    assert healthy.sql("select distinct reward from records").fetchall() == [(1.0,)]
    assert faulty.sql("select distinct env from records where reward <> 1").fetchall() == [(5,)]
    assert {"completion", "reward"} <= set(texts.records(1).column_names)
    assert (tmp_path / "demo-cart.png").stat().st_size > 10_000

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
    (tmp_path / "demo-cart-healthy-0").mkdir()
    (tmp_path / "demo-cart-healthy-0" / "notes.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path), "--no-view"]) == 1
    assert "is not a run: choose another --out" in capsys.readouterr().err
    assert (tmp_path / "demo-cart-healthy-0" / "notes.txt").read_text() == "mine"


def test_the_rewards_pay_the_trigger_where_the_prompt_has_a_comma():
    assert language.vowels(["Go", "Go, on"], ["xx!x", "xx!x"]) == [0.0, 1.0]
    assert language.vowels(["Go, on"], ["aaxx"]) == [0.5]
