"""A study's curves: nothing that a run measured is lost, and all of it is one file in the end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="curves are Parquet files (pip install 'rollsight[runs]')")

from rollsight import RollsightError
from rollsight.studies import store

KEYS = ("env", "arm", "seed")
RUN = ("ns/Env-v0", "iif:0.5@lr=0.1,clip=off", 3)


def rows(last: int) -> list[dict[str, object]]:
    return [{"round": r, "return": r / 3, "kept": None if r == 0 else 1.0, "text": f"t{r}"} for r in range(last + 1)]


def test_a_run_that_is_not_gathered_yet_counts_and_replaces_the_older_one(tmp_path: Path) -> None:
    store.add(tmp_path, KEYS, RUN, rows(1))
    store.gather(tmp_path, KEYS)
    assert not (tmp_path / "new").exists()
    store.add(tmp_path, KEYS, RUN, rows(2))
    other = (*RUN[:2], 20)
    store.add(tmp_path, KEYS, other, rows(1))
    for _ in range(2):  # before and after
        found = store.stored(tmp_path, KEYS)
        assert list(found) == [RUN, other]
        assert found[RUN]["round"].tolist() == [0, 1, 2]
        assert found[RUN]["return"].tolist() == [0, 0.33333, 0.66667]  # five digits
        assert np.isnan(found[RUN]["kept"][0])
        assert found[RUN]["text"].tolist() == ["t0", "t1", "t2"]
        store.gather(tmp_path, KEYS)
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {"curves.parquet"}


def test_runs_that_measured_different_things_stand_in_one_file(tmp_path: Path) -> None:
    store.add(tmp_path, KEYS, ("a", "ppo", 0), [{"round": 1, "return": 1.0}])
    store.add(tmp_path, KEYS, ("a", "ppo", 1), [{"round": 1, "return": 2.0, "kl": 0.5}])
    store.gather(tmp_path, KEYS)
    first, second = store.stored(tmp_path, KEYS).values()
    assert np.isnan(first["kl"]).all()
    assert second["kl"].tolist() == [0.5]


def test_processes_that_gather_at_once_lose_nothing(tmp_path: Path) -> None:
    def work(seed: int) -> None:
        store.add(tmp_path, KEYS, ("a", "ppo", seed), rows(1))
        store.gather(tmp_path, KEYS)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert [key[2] for key in store.stored(tmp_path, KEYS)] == list(range(40))


def test_what_is_not_a_study_of_this_kind_is_said(tmp_path: Path) -> None:
    store.add(tmp_path, ("arm", "seed"), ("ppo", 0), rows(1))
    store.gather(tmp_path, ("arm", "seed"))
    with pytest.raises(RollsightError, match="does not hold the curves of this study"):
        store.stored(tmp_path, KEYS)
    (tmp_path / "curves.parquet").write_bytes(b"no")
    with pytest.raises(RollsightError, match="does not hold the curves of this study"):
        store.stored(tmp_path, KEYS)
