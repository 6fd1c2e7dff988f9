"""One of two data-parallel processes of `test_trl_parallel`: trains one step and says what it saw."""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from trl_zoo import dropping, lora, parameters, shifted, trainer

import rollsight as rs
from rollsight import runs
from rollsight.adapters.trl import attach
from rollsight.selection import Selection

CHANGES = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 1, "loss_type": "grpo"}
ROWS = (*range(8), 9)  # of 16: every row of the first process, one of the second


class FailsOnRank1(rs.targets.Sequence):
    """In round 1 before the processes meet, in round 2 between two meetings."""

    def measured_on(self, records: rs.Records) -> rs.Records:
        self._fail(records, 1)
        return super().measured_on(records)

    def terms(self, evaluation: rs.Evaluation, records: rs.Records) -> torch.Tensor:
        self._fail(records, 2)
        return super().terms(evaluation, records)

    def _fail(self, records: rs.Records, round: int) -> None:
        if torch.distributed.get_rank() == 1 and int(records.ids["round"][0]) == round:
            raise torch.OutOfMemoryError(f"in round {round}")


def survive(folder: Path) -> None:
    """Five rounds in which scores fail on one process, then a rule and a write in the main process."""
    plain = trainer(folder / "plain", **CHANGES | {"max_steps": 5})
    plain.train()
    calls: list[int] = []

    def rule(scores: rs.Scores) -> Selection:
        calls.append(int(scores.ids["round"][0]))
        if calls[-1] == 3:
            raise ValueError("no such rule")
        weights = scores.valid.float()
        return Selection(weights, torch.tensor([]), 0, 0)

    trained = trainer(folder / "out", **CHANGES | {"max_steps": 5})
    attachment = attach(trained, target=[FailsOnRank1(), "return"], selection=rule, run=folder / "run")
    writes = runs.RunWriter.write_records

    def write(writer: Any, round: int, columns: Any) -> None:
        if round == 4:
            raise OSError("disk full")
        writes(writer, round, columns)

    runs.RunWriter.write_records = write  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained.train()
    again = trainer(folder / "again", **CHANGES)
    attach(again, run=folder / "run")
    try:
        again.train()
        refused = ""
    except rs.RollsightError as error:
        refused = str(error)
    found = {
        "plain": parameters(plain),
        "end": parameters(trained),
        "said": [str(one.message) for one in caught if "training goes on" in str(one.message)],
        "refused": refused,
        "ruled": calls,
        "scores": attachment.scores["sequence"].values,
    }
    torch.save(found, folder / f"rank{trained.accelerator.process_index}.pt")


def in_backward(folder: Path) -> dict[str, Any]:
    """A step with an adapter, with clipping: plain, nothing dropped, and rows dropped by scores of either way."""
    found: dict[str, Any] = {}
    ways: dict[str, Any] = {
        "plain": None,
        "nothing": {"scoring": "in_backward"},
        "in_backward": {"scoring": "in_backward", "selection": dropping(*ROWS)},
        "own_pass": {"scoring": "own_pass", "selection": dropping(*ROWS)},
    }
    for name, options in ways.items():
        trained = trainer(folder / name, lora=lora(), **CHANGES | {"max_grad_norm": 0.1})
        shifted(trained)
        attachment = None if options is None else attach(trained, target=["sequence", "return"], **options)
        trained.train()
        found[name] = {"end": parameters(trained)}
        if attachment is not None:
            found[name]["scores"] = {target: scores.values for target, scores in attachment.scores.items()}
            found[name]["backend"] = attachment.scores["sequence"].backend
    return found


def main(folder: Path, loss: str) -> None:
    torch.set_num_threads(1)
    if loss == "survive":
        survive(folder)
        return
    trained = trainer(folder / "out", **CHANGES | {"loss_type": loss})
    made, batches = trained._generate_and_score_completions, []

    def generate(inputs: Any) -> Any:
        batches.append(made(inputs))
        return batches[0]

    trained._generate_and_score_completions = generate
    attachment = attach(trained, selection=dropping(*ROWS), run=folder / "run")
    start = parameters(trained)
    trained.train()
    found = {
        "batch": batches[0],
        "start": start,
        "end": parameters(trained),
        "scores": attachment.scores["sequence"].values,
        **in_backward(folder),
    }
    torch.save(found, folder / f"rank{trained.accelerator.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
