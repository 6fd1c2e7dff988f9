"""One of two data-parallel processes of `test_trl_parallel`: trains one step and says what it saw."""

import sys
from pathlib import Path
from typing import Any

import torch
from test_trl import dropping, parameters, trainer

from rollsight.adapters.trl import attach

CHANGES = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 1, "loss_type": "grpo"}
ROWS = (*range(8), 9)  # of 16: every row of the first process, one of the second


def main(folder: Path, loss: str) -> None:
    torch.set_num_threads(1)
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
    }
    torch.save(found, folder / f"rank{trained.accelerator.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
