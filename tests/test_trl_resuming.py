"""TRL: training that was interrupted and resumed from a checkpoint is the training that was not, and so is its run
folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from transformers import TrainerCallback
from trl_zoo import digits, model, parameters, trainer

import rollsight as rs
from rollsight import runs
from rollsight.adapters.trl import attach

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


class StopAt(TrainerCallback):
    """An interrupt at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trained(folder: Path, *, at: int | None, options: Any, checkpoint: int = 2, **changes: Any) -> Any:
    """A training with a run folder that is interrupted at the end of step `at`, and resumed from a checkpoint."""
    settings = {**SAVING, **changes}
    first = trainer(folder / "out", **settings)
    attachment = attach(first, run=folder / "run", **options)
    if at is None:
        first.train()
        return first, attachment
    first.add_callback(StopAt(at))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    resumed = trainer(folder / "out", **settings)
    attachment = attach(resumed, run=folder / "run", **options)
    resumed.train(resume_from_checkpoint=str(folder / "out" / f"checkpoint-{checkpoint}"))
    return resumed, attachment


@pytest.mark.parametrize(
    "options",
    [
        {"drop": 1.0, "cross_fit": True},
        {"drop": 1.0, "cross_fit": True, "every": 2},
        {"selection": "random:0.9", "cross_fit": True},
    ],
    ids=["cross_fit", "every", "random"],
)
def test_resuming_ends_where_the_uninterrupted_training_ends(tmp_path: Path, options: Any) -> None:
    whole, _ = trained(tmp_path / "whole", at=None, options=options)
    resumed, attachment = trained(tmp_path / "parts", at=3, options=options)
    assert torch.equal(parameters(whole), parameters(resumed))
    assert attachment.round == 4
    one, other = runs.open(tmp_path / "whole" / "run"), runs.open(tmp_path / "parts" / "run")
    assert one.rounds == other.rounds == [1, 2, 3, 4]
    assert [row[0] for row in other.sql("select step from rounds order by round").fetchall()] == [0, 1, 2, 3]
    assert all(one.records(round).equals(other.records(round)) for round in one.rounds)
    assert not all(row["kept"] for round in one.rounds for row in one.records(round).to_pylist())
    (continued,) = other.metadata["continued"]
    assert continued["after_round"] == continued["step"] == 2
    assert continued["replaced_rounds"] == [3]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"num_iterations": 2}, [0, 2]),  # the checkpoint lies between two batches
        ({"steps_per_generation": 8, "per_device_train_batch_size": 2, "num_generations": 2}, [0, 2]),  # within one
        ({"num_iterations": 3, "max_steps": 6}, [0, 2, 5]),
        ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, [0, 0, 1, 1, 2, 2, 3, 3]),
    ],
)
def test_the_round_counts_generation_batches_wherever_the_checkpoint_lies(
    tmp_path: Path, changes: Any, steps: list[int]
) -> None:
    """TRL makes a new generation batch where it resumes within one: a further round, the one before stays."""
    _, attachment = trained(tmp_path, at=3, options={}, **changes)
    run = runs.open(tmp_path / "run")
    assert [row[0] for row in run.sql("select step from rounds order by round").fetchall()] == steps
    assert run.rounds == list(range(1, len(steps) + 1))
    assert attachment.round == len(steps)


def test_a_training_that_resumes_twice_within_a_generation_batch_keeps_what_trained(tmp_path: Path) -> None:
    changes = {"num_iterations": 3, "save_steps": 1, "max_steps": 9}
    trained(tmp_path, at=3, options={}, checkpoint=1, **changes | {"max_steps": 7})
    run = runs.open(tmp_path / "run")
    assert [row[0] for row in run.sql("select step from rounds order by round").fetchall()] == [0, 1, 4]
    again = trainer(tmp_path / "out", **SAVING | changes)
    attachment = attach(again, run=tmp_path / "run")
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    steps = [row[0] for row in runs.open(tmp_path / "run").sql("select step from rounds order by round").fetchall()]
    assert steps == [0, 1, 4, 6]
    assert attachment.round == 4


def test_a_checkpoint_of_a_training_without_attachment_gives_the_round_by_its_steps(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "out", **SAVING | {"max_steps": 2})
    plain.train()
    resumed = trainer(tmp_path / "out", **SAVING | {"max_steps": 3})
    attach(resumed, run=tmp_path / "run")
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert runs.open(tmp_path / "run").rounds == [3]


def test_a_folder_that_lies_behind_the_checkpoint_is_continued_with_a_gap(tmp_path: Path) -> None:
    for folder, steps in (("early", 1), ("out", 2)):
        early = trainer(tmp_path / folder, **SAVING | {"max_steps": steps})
        attach(early, run=tmp_path / f"run of {folder}")
        early.train()
    resumed = trainer(tmp_path / "out", **SAVING | {"max_steps": 3})
    attach(resumed, run=tmp_path / "run of early")
    with pytest.warns(UserWarning, match="ends with round 1 and training goes on after round 2: the rounds between"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    run = runs.open(tmp_path / "run of early")
    assert run.rounds == [1, 3]
    assert run.metadata["continued"][0]["missing_rounds"] == [2]


def test_another_training_does_not_continue_a_run(tmp_path: Path) -> None:
    first = trainer(tmp_path / "out", **SAVING | {"max_steps": 2})
    attach(first, run=tmp_path / "run")
    first.train()

    def resume(**changes: Any) -> None:
        other = trainer(tmp_path / "out", **SAVING | {"max_steps": 3} | changes)
        attach(other, run=tmp_path / "run")
        other.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))

    def letters(completions: list[str], **_: Any) -> list[float]:
        return digits(completions)

    named = model()
    named.config._name_or_path = "models/other"
    with pytest.raises(rs.RollsightError, match="its reward functions: digits, this trainer's: letters"):
        resume(reward=letters)
    with pytest.raises(rs.RollsightError, match="its algorithm: grpo, this trainer's: rloo"):
        resume(algorithm="rloo")
    with pytest.raises(rs.RollsightError, match=r"its model: LlamaForCausalLM, this trainer's: models/other"):
        resume(model=named)
    metadata = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**metadata, "peft": True}))
    with pytest.raises(rs.RollsightError, match="its use of an adapter: True, this trainer's: False"):
        resume()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"format": metadata["format"], "env": "CartPole-v1"}))
    with pytest.raises(rs.RollsightError, match="is not of a TRL trainer"):
        resume()
    assert runs.open(tmp_path / "run").rounds == [1, 2]
    (tmp_path / "run" / "run.json").write_text(json.dumps(metadata))
    named.config._name_or_path = str(tmp_path / "out" / "checkpoint-2")
    resume(model=named)
    assert runs.open(tmp_path / "run").rounds == [1, 2, 3]
