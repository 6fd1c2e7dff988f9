"""TRL: watching never stops training, and lets go of the run folder however training ends."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from filelock import lock_descriptor
from transformers import TrainerCallback
from trl_zoo import digits, parameters, trainer

import rollsight as rs
from rollsight import runs
from rollsight.adapters.trl import attach, table
from rollsight.adapters.trl import attachment as module

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Fails(rs.targets.Sequence):
    """A target that fails from round 2 on."""

    def __init__(self, error: Exception, name: str = "sequence") -> None:
        super().__init__(name=name)
        object.__setattr__(self, "error", error)

    def measured_on(self, records: rs.Records) -> rs.Records:
        if int(records.ids["round"][0]) > 1:
            raise self.error
        return super().measured_on(records)


def failing(error: BaseException, after: int = 1, call: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A function that does as `call` does the first `after` times and then raises."""
    calls = []

    def function(*args: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise error
        return None if call is None else call(*args, **keywords)

    return function


def our_warnings(train: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train()
    return [str(one.message) for one in caught if "round " in str(one.message)]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    plain = trainer(tmp_path_factory.mktemp("stock"), max_steps=3)
    plain.train()
    return parameters(plain)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"),
        rs.RollsightError("not covered"),
        RuntimeError("an operator is missing"),
        KeyError("own"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_scores_that_fail_are_one_warning_and_null(tmp_path: Path, stock: torch.Tensor, error: Exception) -> None:
    trained = trainer(tmp_path / "out", max_steps=3)
    attachment = attach(trained, target=[Fails(error), "return"], run=tmp_path / "run")
    (said,) = our_warnings(trained.train)
    assert said.startswith("round 2: no scores of 'sequence' (")
    assert str(error).partition("\n")[0].strip(".") in said
    assert said.endswith("; training goes on")
    assert torch.equal(parameters(trained), stock)
    assert attachment.scores.keys() == {"return"}
    run = runs.open(tmp_path / "run")
    assert run.rounds == [1, 2, 3]
    noted = [row[0] for row in run.sql("select warnings from rounds order by round").fetchall()]
    assert noted[0] is None
    assert "round 2: no scores" in noted[1]
    assert "round 3: no scores" in noted[2]
    described = run.sql("select scored, target from rounds order by round").fetchall()
    assert described == [(True, "sequence"), (False, None), (False, None)]
    known = run.sql("select count(score_sequence), count(score_return) from records group by round order by round")
    assert known.fetchall() == [(8, 8), (0, 8), (0, 8)]


@pytest.mark.parametrize(
    "options",
    [
        {"drop": 1.0, "target": Fails(RuntimeError("lost")), "cross_fit": True},
        {"selection": failing(ValueError("lost"), 0)},
        {"selection": lambda scores: None},
        {"drop": 1.0, "target": [Fails(RuntimeError("lost")), "return"], "every": 2},
    ],
    ids=["scores", "rule", "no selection", "another target is no stand-in"],
)
def test_a_selection_that_cannot_be_had_keeps_everything_and_says_so(tmp_path: Path, options: Any) -> None:
    trained = trainer(tmp_path / "out", max_steps=3)
    attachment = attach(trained, run=tmp_path / "run", **options)
    (said,) = our_warnings(trained.train)
    assert "so every completion is kept" in said
    assert attachment.selection is None
    rounds = runs.open(tmp_path / "run").sql("select kept_frac, warnings from rounds order by round").fetchall()
    assert rounds[1][0] == 1
    assert "so every completion is kept" in rounds[1][1]


@pytest.mark.parametrize("part", ["write_records", "write_round"])
def test_a_full_disk_costs_its_rounds_and_nothing_else(
    tmp_path: Path, stock: torch.Tensor, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    trained = trainer(tmp_path / "out", max_steps=3)
    attach(trained, run=tmp_path / "run")
    writes = getattr(runs.RunWriter, part)

    def write(self: Any, round: int, *args: Any) -> None:
        if round == 2:
            raise full
        writes(self, round, *args)

    monkeypatch.setattr(runs.RunWriter, part, write)
    (said,) = our_warnings(trained.train)
    assert (
        said == "round 2: no record in the run folder (OSError: [Errno 28] No space left on device); training goes on"
    )
    assert torch.equal(parameters(trained), stock)
    run = runs.open(tmp_path / "run")
    assert run.rounds == [1, 3]
    assert run.records(3).num_rows == 8


@pytest.mark.parametrize("name", ["summary_of", "report", "add_columns", "run_columns"])
def test_what_shows_and_keeps_a_round_may_fail(
    tmp_path: Path, stock: torch.Tensor, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    trained = trainer(tmp_path / "out", max_steps=3)
    attach(trained, run=tmp_path / "run")
    monkeypatch.setattr(table, name, failing(TypeError("odd"), 1, getattr(table, name)))
    (said,) = our_warnings(trained.train)
    assert "(TypeError: odd); training goes on" in said
    assert torch.equal(parameters(trained), stock)


def test_a_batch_that_cannot_be_read_is_trained_on_as_it_is(
    tmp_path: Path, stock: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = trainer(tmp_path / "out", max_steps=3)
    attach(trained, drop=1.0)
    monkeypatch.setattr(module, "own_records", failing(rs.RollsightError("images"), 0))
    (said,) = our_warnings(trained.train)
    assert said == "round 1: no records (images); training goes on"
    assert torch.equal(parameters(trained), stock)


def test_rewards_that_are_missing_are_said_once(tmp_path: Path) -> None:
    def reward(completions: list[str], **_: Any) -> list[float | None]:
        return [None, float("inf"), *digits(completions)[2:]]

    trained = trainer(tmp_path / "out", max_steps=3, reward=reward)
    attach(trained, run=tmp_path / "run")
    said = our_warnings(trained.train)
    assert sum("no reward function gave a number for 2 of 8 completions" in one for one in said) == 1
    assert runs.open(tmp_path / "run").rounds == [1, 2, 3]


class Raise(TrainerCallback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == 2:
            raise self.error


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), ValueError("in a reward function")], ids=repr)
def test_another_trainer_of_the_process_writes_the_run_again(tmp_path: Path, error: BaseException | None) -> None:
    first = trainer(tmp_path / "out", max_steps=2)
    attach(first, run=tmp_path / "run")
    if error is None:
        first.train()
    else:
        first.add_callback(Raise(error))
        with pytest.raises(type(error)):
            first.train()
    with (tmp_path / "run" / ".lock").open() as lock:
        assert lock_descriptor(lock.fileno(), blocking=False)  # as another process would ask for it
    second = trainer(tmp_path / "new", max_steps=1)
    attach(second, run=tmp_path / "run")
    with pytest.raises(rs.RollsightError, match=r"exists already: .* replace it with overwrite=True"):
        second.train()
    assert second.state.global_step == 0
    with pytest.warns(UserWarning, match="which the new one replaces"):
        attach(second, run=tmp_path / "run", overwrite=True)
    second.train()
    assert runs.open(tmp_path / "run").rounds == [1]


def test_training_twice_with_one_attachment_continues_the_run(tmp_path: Path) -> None:
    ends = []
    for name in ("stock", "attached"):
        twice = trainer(tmp_path / name)
        if name == "attached":
            attachment = attach(twice, run=tmp_path / "run", overwrite=True)
        twice.train()
        twice.train()
        ends.append(parameters(twice))
    assert torch.equal(*ends)
    assert attachment.round == 4
    run = runs.open(tmp_path / "run")
    assert run.rounds == [1, 2, 3, 4]
    assert [entry["after_round"] for entry in run.metadata["continued"]] == [2]


def test_training_goes_on_in_the_trainer_that_was_interrupted(tmp_path: Path) -> None:
    trained = trainer(tmp_path / "out", save_strategy="steps", save_steps=1, max_steps=3)
    attachment = attach(trained, run=tmp_path / "run", drop=0.5)
    trained.add_callback(Raise(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        trained.train()
    trained.remove_callback(Raise)
    trained.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert attachment.round == 3
    assert runs.open(tmp_path / "run").rounds == [1, 2, 3]


def test_a_reward_function_that_fails_in_round_1_can_be_put_right(tmp_path: Path) -> None:
    wrong = [True]

    def reward(completions: list[str], **_: Any) -> list[float]:
        if wrong:
            raise ZeroDivisionError
        return digits(completions)

    trained = trainer(tmp_path / "out", reward=reward)
    attach(trained, run=tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        trained.train()
    wrong.clear()
    trained.train()
    assert runs.open(tmp_path / "run").rounds == [1, 2]


def test_a_detached_attachment_is_silent_under_a_hook_that_still_calls_it(tmp_path: Path) -> None:
    trained = trainer(tmp_path / "out")
    attachment = attach(trained, run=tmp_path / "run")
    inner = trained._generate_and_score_completions
    trained._generate_and_score_completions = lambda inputs: inner(inputs)
    attachment.detach()
    trained.train()
    assert attachment.round == 0
    assert not (tmp_path / "run").exists()
