"""The guard around everything that watches training."""

from __future__ import annotations

import warnings

import pytest

from rollsight import RollsightError
from rollsight.watching import Watch


def failing(error: BaseException) -> object:
    raise error


def test_a_failure_is_a_warning_and_none() -> None:
    watch = Watch()
    watch.begin(2)
    assert watch.attempt("scores", lambda: 3) == 3
    assert watch.said is None
    with pytest.warns(UserWarning, match=r"^round 2: no scores \(RuntimeError: out of memory\); training goes on$"):
        assert watch.attempt("scores", lambda: failing(RuntimeError("out of memory\nTried to ..."))) is None
    with pytest.warns(UserWarning, match=r"no snapshot \(disk full\); training goes on"):
        watch.attempt("snapshot", lambda: failing(RollsightError("disk full.")))
    assert watch.said == (
        "round 2: no scores (RuntimeError: out of memory); training goes on\n"
        "round 2: no snapshot (disk full); training goes on"
    )
    watch.begin(3)
    assert watch.said is None


def test_each_kind_is_said_once_and_every_round_remembers() -> None:
    watch = Watch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for round in (1, 2):
            watch.begin(round)
            for _ in range(100):
                watch.attempt("scores", lambda: failing(RuntimeError("a")))
            watch.attempt("scores", lambda: failing(KeyError()))
            assert str(watch.said).count(f"round {round}: no scores") == 2
    assert len(caught) == 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()])
def test_what_ends_a_program_ends_it(stop: BaseException) -> None:
    with pytest.raises(type(stop)):
        Watch().attempt("scores", lambda: failing(stop))
