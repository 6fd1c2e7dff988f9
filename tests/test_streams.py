"""Random streams: one number for each purpose, and all numbers in one file."""

import ast
from pathlib import Path

import numpy as np
import pytest

import rollsight
from rollsight import streams
from rollsight.streams import Purpose

SOURCE = Path(rollsight.__file__).parent
SHARED = {"BACKGROUND": "SAMPLING", "FRESH_ACTIONS": "FRESH_BUFFER"}  # by history
NUMPYS = {"default_rng", "SeedSequence", "RandomState"}


def test_purposes_have_numbers_of_their_own():
    aliases = {name: purpose.name for name, purpose in Purpose.__members__.items() if name != purpose.name}
    assert aliases == SHARED


def test_no_other_file_makes_a_stream_or_holds_a_purpose():
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name == "streams.py" and path.parent == SOURCE:
            continue
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and type(node.value) is int:
                written = ast.get_source_segment(text, node) or ""
                found += [(path.name, written)] if written.lower().startswith("0x") and node.value > 0xFF else []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in NUMPYS:
                found += [(path.name, node.func.attr)] if node.args or node.keywords else []
    assert found == []


@pytest.mark.parametrize("key", [(0,), (7, 2, Purpose.SAMPLING), (Purpose.SHOTS,), (2**40, 3, Purpose.DROP_RANDOM, 1)])
def test_a_stream_is_numpys_of_the_same_key(key):
    plain = tuple(int(number) for number in key)
    expected = np.random.default_rng(plain).random(4)
    assert np.array_equal(streams.stream(*key).random(4), expected)
    if len(plain) == 1:
        assert np.array_equal(np.random.default_rng(plain[0]).random(4), expected)
    state = np.random.SeedSequence(plain).generate_state(8)
    assert streams.seed_from(*key) == int(state[0])
    seeded = np.random.RandomState()
    seeded.seed([int(part) for part in state])
    assert np.array_equal(streams.legacy(*key).random_sample(4), seeded.random_sample(4))


def test_streams_of_other_purposes_are_other_streams():
    first = [streams.stream(3, 5, purpose).random() for purpose in Purpose]
    assert len(set(first)) == len(Purpose) > 30
