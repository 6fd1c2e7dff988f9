"""A part of `benchmarks/corruption.py`: no command changes its answer without a word, none ends in a traceback."""

import importlib.util
import sys
import warnings
from pathlib import Path

import pytest


@pytest.fixture
def corruption(monkeypatch):
    path = Path(__file__).parents[1] / "benchmarks/corruption.py"
    spec = importlib.util.spec_from_file_location("corruption", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "corruption", module)
    spec.loader.exec_module(module)
    for name in module.SLOW:
        del module.COMMANDS[name]
    return module


def test_what_is_wrong_with_a_run_is_said(corruption, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        corruption.make_run(tmp_path / "healthy")
    found, bad = corruption.measure(64, 0, tmp_path / "healthy", tmp_path, every=7)
    assert bad == []
    assert sum(count for (_, what), count in found.items() if what == "said") > 20
